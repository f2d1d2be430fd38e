"""Documents: every command, file, setting and link that they name exists."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import typer

import index_builder.cli
import service.cli
from service.settings import Settings
from tests.project.source import ROOT

DOCUMENTS = sorted(
    path for path in ROOT.glob("**/*.md") if not {".venv", "build", "demo"} & set(path.relative_to(ROOT).parts)
)
CODE = re.compile(r"```(?:sh|console|bash)\n(.*?)```|`([^`\n]+)`", re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s;&|(])((?:\.venv/bin/)?(?:python|m3tr-build|m3tr-serve|make)\s[^#`;|&]*)")
FILE = re.compile(r"(?<![\w/.-])((?:service|model|index_builder|tests|benchmarks|docs|docker|\.ci)/[\w./-]*)")
SETTING = re.compile(r"\bM3TR_[A-Z_]+\b")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
TESTS_OWN = {"M3TR_TEST_DATA", "M3TR_TEST_CASES"}
OURS = ("benchmarks", "index_builder", "model", "service", "tests")
CLIS = {"m3tr-build": index_builder.cli.app, "m3tr-serve": service.cli.cli}


def commands(text: str) -> list[list[str]]:
    """Each command in the document's code, as its words."""
    found = []
    for block, inline in CODE.findall(text):
        code = (block or inline).replace("\\\n", " ")
        for line in code.splitlines():
            found += [match.split() for match in COMMAND.findall(line)]
    return found


def complaint(words: list[str]) -> str | None:
    """Why a command cannot be what a reader should type; None where it can."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        return _make(rest)
    if program == "python":
        return _python(rest)
    return _cli(program, rest)


def _make(words: list[str]) -> str | None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return next((f"make has no target {word}" for word in words if "=" not in word and word not in targets), None)


def _python(words: list[str]) -> str | None:
    if words[0] == "-m" and len(words) > 1:
        if words[1].split(".")[0] in OURS and importlib.util.find_spec(words[1]) is None:
            return f"there is no module {words[1]}"
        source = ROOT / (words[1].replace(".", "/") + ".py")
        return _options(source, words[2:]) if source.is_file() else None
    path = ROOT / words[0]
    return _options(path, words[1:]) if path.is_file() else f"there is no file {words[0]}"


def _options(source: Path, words: list[str]) -> str | None:
    known = {
        node.value
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    named = [word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("--")]
    return next((f"{source.name} has no option {name}" for name in named if name not in known), None)


def _cli(program: str, words: list[str]) -> str | None:
    command: Any = typer.main.get_command(CLIS[program])
    commands_of: dict[str, Any] = getattr(command, "commands", {})
    if commands_of:
        if not words or words[0].startswith("-") or words[0] == "COMMAND":
            return None
        if words[0] not in commands_of:
            return f"{program} has no command {words[0]}"
        command = commands_of[words[0]]
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    named = [word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("--")]
    return next((f"{program}: no option {name}" for name in named if name not in options), None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    text = document.read_text("utf-8")
    found = [f"{' '.join(words)}: {why}" for words in commands(text) if len(words) > 1 and (why := complaint(words))]
    found += [f"no file {name}" for name in FILE.findall(text) if not exists(name, document)]
    found += [f"no file {name}" for name in LINK.findall(text) if not (document.parent / name).exists()]
    settings = {f"M3TR_{name.upper()}" for name in Settings.model_fields} | TESTS_OWN
    found += [f"no setting {name}" for name in SETTING.findall(text) if name not in settings and not name.endswith("_")]
    assert found == []


def exists(name: str, document: Path) -> bool:
    """Whether a path stands in the project, or beside the document."""
    name = name.rstrip(".")
    return (ROOT / name).exists() or (document.parent / name).exists()


def test_documents_are_found_and_name_commands() -> None:
    assert {"README.md", "ARCHITECTURE.md", "CHANGELOG.md"} <= {path.name for path in DOCUMENTS}
    assert len([words for path in DOCUMENTS for words in commands(path.read_text("utf-8"))]) > 20


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "python -m benchmarks.nothing",
        "python -m benchmarks.components.steps --nothing",
        "python nothing.py",
        "m3tr-build nothing",
        "m3tr-build train DATA --nothing",
        "m3tr-serve --nothing",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    assert [complaint(words) for words in commands(f"`{command}`")] != [None]

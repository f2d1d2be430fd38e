"""The size of the house: no folder with too many files, no file too long."""

from __future__ import annotations

import statistics
from collections import Counter

from tests.project.source import ROOT

FOLDERS = ("benchmarks", "docker", "index_builder", "model", "service", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LENGTHS = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in FILES}
MAX_FILES = 20
MAX_LINES = 400
MAX_MEDIAN_LINES = 120


def test_no_folder_holds_too_many_files() -> None:
    sizes = Counter(str(path.parent.relative_to(ROOT)) for path in FILES)
    assert {folder: n for folder, n in sizes.items() if n > MAX_FILES} == {}


def test_no_file_is_too_long() -> None:
    assert {name: n for name, n in LENGTHS.items() if n > MAX_LINES} == {}


def test_most_files_are_short() -> None:
    assert len(FILES) > 100
    assert statistics.median(LENGTHS.values()) < MAX_MEDIAN_LINES


def test_no_line_is_hidden_from_the_formatter() -> None:
    marks = ("# fmt: " + word for word in ("skip", "off"))
    texts = {path: path.read_text("utf-8") for path in FILES}
    assert [(path.name, mark) for mark in marks for path, text in texts.items() if mark in text] == []

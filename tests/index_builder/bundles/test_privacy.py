"""A bundle reveals nothing about the machine that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.bundle import FILES
from tests.conftest import Mini


@pytest.mark.parametrize("name", FILES)
def test_no_file_contains_the_path_of_the_source_code(mini: Mini, name: str) -> None:
    content = (mini.bundle / name).read_bytes()
    for source in (str(Path(__file__).parents[3]), "site-packages", 'File "'):
        assert source.encode() not in content

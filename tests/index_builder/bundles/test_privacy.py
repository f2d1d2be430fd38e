"""What leaves the machine with a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.bundle import FILES
from tests.conftest import Mini


@pytest.mark.parametrize("name", FILES)
def test_no_file_tells_where_its_sources_lie(mini: Mini, name: str) -> None:
    content = (mini.bundle / name).read_bytes()
    for source in (str(Path(__file__).parents[3]), "site-packages", 'File "'):
        assert source.encode() not in content

"""Situations that users of like systems have reported, each a small program that tries the real commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

CASES = Path(os.environ.get("M3TR_TEST_CASES", ROOT.parent / "shared" / "cases"))
IN_CI = os.environ.get("CI") == "true"
CANNOT_BE_TRIED = 77


def test_the_cases_are_here() -> None:
    if not IN_CI and not CASES.is_dir():
        pytest.skip("no cases here; set M3TR_TEST_CASES")
    assert list(CASES.glob("*/run.sh")), f"{CASES}: no cases; set M3TR_TEST_CASES"


@pytest.mark.parametrize("case", sorted(path.parent.name for path in CASES.glob("*/run.sh")))
def test_case(case: str, mini_bundle: Path, tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("M3TR_")},
        "M3TR_BIN": str(Path(sys.executable).parent),
        "M3TR_BUNDLE": str(mini_bundle),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run([CASES / case / "run.sh"], env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode == CANNOT_BE_TRIED and not IN_CI:
        pytest.skip(said.strip().splitlines()[-1])
    assert done.returncode == 0, said

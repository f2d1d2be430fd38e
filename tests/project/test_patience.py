"""Timeouts of tests: they wait longer on a busy machine, and end what hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.patience import Patience, run, slowdown
from tests.project.source import ROOT

pytestmark = pytest.mark.slow


def test_a_busy_machine_makes_a_second_count_less(tmp_path: Path) -> None:
    loadavg = tmp_path / "loadavg"
    loadavg.write_text("0.10 0.20 0.30 1/200 4711\n")
    assert slowdown(loadavg, 2) == 1
    loadavg.write_text("10.00 5.00 1.00 1/200 4711\n")
    assert slowdown(loadavg, 2) == 5
    loadavg.write_text("0.00 0.00 0.00 8/200 4711\n")
    assert slowdown(loadavg, 2) == 4
    assert slowdown(tmp_path / "missing", 2) == 1


def test_a_limit_passes_when_its_share_of_time_has_passed() -> None:
    now, slowed = [0.0], [1.0]
    patience = Patience(10, clock=lambda: now[0], slowed=lambda: slowed[0])
    now[0] = 9
    assert not patience.over()
    slowed[0], now[0] = 5.0, 13.0
    assert not patience.over()
    now[0] = 15.0
    assert patience.over()


def test_a_program_that_hangs_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run([sys.executable, "-c", "import time; time.sleep(600)"], seconds=1)


def test_a_program_that_ends_gives_its_output() -> None:
    command = [sys.executable, "-c", "import sys; print(sys.stdin.read()[::-1]); sys.exit(3)"]
    done = run(command, seconds=60, capture_output=True, text=True, input="abc")
    assert (done.returncode, done.stdout) == (3, "cba\n")
    with pytest.raises(subprocess.CalledProcessError):
        run(command, seconds=60, capture_output=True, text=True, input="abc", check=True)


def test_a_test_that_hangs_fails_and_the_next_one_runs(tmp_path: Path) -> None:
    """The suite's own conftest in another run of pytest."""
    (tmp_path / "conftest.py").write_text(
        "import tests.conftest\n"
        "tests.conftest.LIMIT_S = 2\n"
        "pytest_runtest_protocol = tests.conftest.pytest_runtest_protocol\n"
    )
    (tmp_path / "test_sample.py").write_text(
        textwrap.dedent(
            """
            import time
            def test_hangs(): time.sleep(600)
            def test_passes(): pass
            """
        )
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)]
    done = run(
        command, seconds=120, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "the stacks of all threads" in done.stdout

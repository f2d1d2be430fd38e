"""The command line: fast help, one-line errors, times and hours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from index_builder import cli
from index_builder.progress import progress
from tests import patience


def run(*arguments: str | Path | int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from index_builder.cli import main; main()", *map(str, arguments)]
    return patience.run(command, capture_output=True, text=True, seconds=60, cwd=Path(__file__).parents[2])


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; from index_builder.cli import app; from typer.testing import CliRunner;"
        "print(CliRunner().invoke(app, ['--help']).output);"
        "print(sorted({'numpy', 'pyarrow', 'torch', 'httpx'} & set(sys.modules)))"
    )
    out = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=Path(__file__).parents[2])
    for command in ("simulate", "check", "train", "index", "forecast", "evaluate", "replay", "demo"):
        assert f"  {command} " in out
    assert out.splitlines()[-1] == "[]"


def test_simulate_then_check(tmp_path: Path) -> None:
    made = run("simulate", "--out", tmp_path / "data", "--videos", 20, "--days", 2, "--seed", 1)
    assert made.returncode == 0
    assert "synthetic, 20 videos" in made.stdout
    checked = run("check", tmp_path / "data")
    assert (checked.returncode, "nothing found" in checked.stdout) == (0, True)
    assert run("check", tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--out", "{}", "--start", "2999-01-01"], "error: start, days: the data would end at 2999-03-09"),
        (["simulate", "--out", "{}", "--start", "soon"], "'soon' is not a time; allowed: 2026-06-01"),
        (["replay", "{}/none", "--url", "http://127.0.0.1:9"], "none: no such data set folder"),
    ],
)
def test_errors_are_one_line_and_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(*(argument.format(tmp_path) for argument in arguments))
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("1970-01-02", 86_400_000_000),
        ("1970-01-01T00:00:01.000001", 1_000_001),
        ("1970-01-01T02:00+02:00", 0),
        ("1969-12-31T23:59:59Z", -1_000_000),
    ],
)
def test_times_are_utc_without_a_zone(text: str, us: int) -> None:
    assert cli.parse_time(text) == us


def test_hours_are_parsed_and_checked() -> None:
    assert cli.parse_hours("--ages", "1,24.5") == [1.0, 24.5]
    for text in ("", "1,,2", "0", "-1", "nan", "inf", "one"):
        with pytest.raises(typer.BadParameter, match=r"--ages: .* allowed: hours above 0"):
            cli.parse_hours("--ages", text)


def test_progress_outside_a_terminal_is_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 6.0, 7.0, 8.0])
    monkeypatch.setattr("index_builder.progress.time.monotonic", lambda: next(clock))
    with progress("train", 4) as bar:
        bar.advance(1, note="loss 0.5")
        bar.advance(1)
        bar.advance(2, note="loss 0.1")
    assert capsys.readouterr().err.splitlines() == [
        "train: 2 of 4, 6 s, loss 0.5",
        "train: done, 4 in 8.0 s, loss 0.1",
    ]

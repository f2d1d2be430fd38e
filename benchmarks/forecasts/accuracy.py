"""The published table: train as of a time, forecast the benchmark's queries of videos published later, score the forecasts.

    python -m benchmarks.forecasts.accuracy [youtube|weibo|bilibili|hn|zhihu|shapes|tideh|all] [--ablation] [--boosting] [--work DIR]

The data sets are in the folder M3TR_TEST_DATA; the tools that make queries and score forecasts are beside it in ../benchmark. DIR
keeps queries, bundles, forecasts and scores: what exists is not computed again, and an interrupted training is resumed. DIR/accuracy.md
is the table: nMSE and SRC of the mean, the other scores of the median and the quantiles. --ablation adds the model without each part,
and the whole model with a bank that does not grow after training. --boosting adds LightGBM with the same inputs
(``benchmarks.forecasts.boosting``). Both have paired bootstrap intervals of the difference. The sets of ``shapes`` are simulated: in
the second one, each class of videos grows differently after training. The 100 cascades of tideh have no dates, so
``benchmarks.forecasts.tideh`` scores them in its own way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.forecasts.paired import Difference, differences

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("mhp", "trajectory", "retrieval", "content")
EVENT_PARTS = (*PARTS, "cascade")
WHOLE = "M3TR"
HELD = "with the bank of the training day"
BOOSTING = "LightGBM, same inputs"
COLUMNS = ("nMSE", "MAE", "SRC", "cover", "width", "pinball")
OF_THE_MEAN = ("nMSE", "SRC", "level")
"""Scores of the mean; the others score the median and the quantiles."""


@dataclass(frozen=True)
class Case:
    """One data set and time: trained as of ``as_of``, scored on videos published later.

    ``parts`` are the parts to ablate, one by one. A set with ``simulate``, which are options of ``m3tr-build simulate``, is made first.
    """

    name: str
    folder: str
    as_of: str
    metric: str
    cut: tuple[str, ...] = ()
    parts: tuple[str, ...] = PARTS
    simulate: tuple[str, ...] = ()


def shapes(name: str, *drift: str) -> Case:
    """A simulated set in which the shape of a video's first day tells its growth."""
    options = ("--videos", "3000", "--seed", "3", "--shapes", "8", *drift)
    cut = ("--ages", "24", "--horizons", "24", "72", "--tolerance", "2")
    return Case(name, name, "2025-10-18", "views", cut, ("mhp", "trajectory", "retrieval"), options)


CASES = {
    "youtube": (
        Case("youtube", "youtube_trending", "2026-06-01", "views"),
        Case("youtube-later", "youtube_trending", "2026-06-15", "views"),
    ),
    "weibo": (
        Case("weibo", "weibo_ced", "2013-06-01", "total", ("--ages", "1", "6", "--horizons", "24", "72"), EVENT_PARTS),
    ),
    "bilibili": (
        Case(
            "bilibili",
            "bilibili_rank",
            "2023-02-20",
            "views",
            ("--ages", "12", "24", "--horizons", "12", "24", "--tolerance", "2"),
        ),
    ),
    "hn": (
        Case(
            "hn", "hn_front", "2022-05-01", "likes", ("--ages", "3", "--horizons", "3", "6", "12", "--tolerance", "1")
        ),
    ),
    "zhihu": (
        Case(
            "zhihu",
            "zhihu_hot",
            "2024-01-01",
            "comments",
            ("--ages", "12", "--horizons", "6", "12", "--tolerance", "1"),
        ),
    ),
    "shapes": (shapes("shapes"), shapes("shapes-drift", "--drift", "2025-10-18")),
}
TIDEH = "tideh"


@dataclass(frozen=True)
class ModelScores:
    """One model of a case, and its scores."""

    name: str
    folder: Path
    scores: dict[str, dict[str, float]]
    training: str


def measured(command: list[str | Path]) -> tuple[float, float]:
    """Seconds that a command took, and the largest resident set of its processes, MB."""
    start = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def builder(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "index_builder.cli", *arguments]


class Bench:
    """Runs cases; all files are under ``work``."""

    def __init__(self, data: Path, work: Path, config: str = "") -> None:
        self.data, self.tools, self.work, self.config = data, data.parent / "benchmark", work, config

    def data_set(self, case: Case) -> Path:
        """The case's data set, simulated first if it has to be."""
        if not case.simulate:
            return self.data / case.folder
        out = self.work / case.name / "data"
        if not out.exists():
            part = self.work / case.name / "data.part"
            measured(builder("simulate", "--out", part, *case.simulate))
            part.rename(out)
        return out

    def queries(self, case: Case) -> Path:
        out = self.work / case.name / "queries.parquet"
        if not out.with_suffix(".answers.parquet").exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            script = self.tools / "make_queries.py"
            command: list[str | Path] = [
                sys.executable,
                script,
                self.data_set(case),
                "--metric",
                case.metric,
                *case.cut,
            ]
            measured([*command, "--published-from", case.as_of, "--out", out])
        return out

    def model(self, case: Case, name: str, settings: str = "") -> ModelScores:
        """Train, forecast and score one model, unless that is done already."""
        queries = self.queries(case)
        folder = self.work / case.name / name.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        bundle, forecasts = folder / "bundle", folder / "forecasts.parquet"
        if not bundle.exists():
            config = folder / "config.toml"
            config.write_text(self.config + settings, encoding="utf-8")
            seconds, megabytes = measured(
                builder(
                    "train",
                    self.data_set(case),
                    "--as-of",
                    case.as_of,
                    "--metric",
                    case.metric,
                    "--config",
                    config,
                    "--out",
                    bundle,
                )
            )
            spent = f"{seconds / 60:.1f} minutes, {megabytes:,.0f} MB"
            (folder / "training.txt").write_text(spent, encoding="utf-8")
            forecasts.unlink(missing_ok=True)
        self.forecast(case, bundle, folder, "--growing-bank")
        # Missing if the benchmark was killed between a training and this note.
        note = folder / "training.txt"
        training = note.read_text(encoding="utf-8") if note.exists() else "not measured"
        return self.scored(name, queries, folder, training)

    def held(self, case: Case, bundle: Path) -> ModelScores:
        """Forecast with the bank as it was after training, and score, unless that is done already."""
        queries, folder = self.queries(case), self.work / case.name / "held-bank"
        folder.mkdir(exist_ok=True)
        self.forecast(case, bundle, folder)
        return self.scored(HELD, queries, folder)

    def forecast(self, case: Case, bundle: Path, folder: Path, *options: str) -> None:
        """Write the forecasts of a bundle into ``folder``, unless that is done already."""
        if not (forecasts := folder / "forecasts.parquet").exists():
            (folder / "scores.json").unlink(missing_ok=True)
            part = folder / "part.parquet"
            measured(builder("forecast", bundle, self.data_set(case), self.queries(case), "--out", part, *options))
            part.rename(forecasts)

    def scored(self, name: str, queries: Path, folder: Path, training: str = "") -> ModelScores:
        """The model whose forecasts are in ``folder``, with its scores, computed unless they are known already."""
        scores = folder / "scores.json"
        if not scores.exists():
            found = self.scores(queries, folder / "forecasts.parquet", name)
            scores.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return ModelScores(name, folder, json.loads(scores.read_text(encoding="utf-8"))["cells"], training)

    def scores(self, queries: Path, forecasts: Path, name: str) -> dict[str, Any]:
        """Scores by the script, which reads one forecast for everything: the median, and for nMSE and SRC in a second run the mean."""
        answers, means = queries.with_suffix(".answers.parquet"), forecasts.with_name("means.parquet")
        table = pd.read_parquet(forecasts)
        table.assign(**{"q0.5": table["mean"]}).to_parquet(means)
        found = []
        for path, what in ((forecasts, name), (means, f"{name}, mean in place of the median")):
            out = path.with_suffix(".json")
            measured([sys.executable, self.tools / "score.py", answers, path, "--name", what, "--json", out])
            found.append(json.loads(out.read_text(encoding="utf-8")))
        scores, of_means = found
        for cell, values in scores["cells"].items():
            values |= {score: of_means["cells"][cell][score] for score in OF_THE_MEAN}
        return dict(scores)

    def boosting(self, case: Case, bundle: Path) -> ModelScores:
        """Train, forecast and score gradient boosting with the inputs of ``bundle``, unless that is done already."""
        queries, folder = self.queries(case), self.work / case.name / "boosting"
        folder.mkdir(exist_ok=True)
        forecasts = folder / "forecasts.parquet"
        if not forecasts.exists():
            part = folder / "part.parquet"
            module = [sys.executable, "-m", "benchmarks.forecasts.boosting"]
            measured([*module, bundle, self.data_set(case), queries, "--as-of", case.as_of, "--out", part])
            part.rename(forecasts)
        return self.scored(BOOSTING, queries, folder)

    def tideh(self) -> str:
        """The table of the cascades of tideh in Markdown."""
        out = self.work / TIDEH / "table.txt"
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "benchmarks.forecasts.tideh", "--data", str(self.data / TIDEH)]
            out.write_text(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
        return f"## {TIDEH}\n\n```\n{out.read_text()}```\n"

    def case(self, case: Case, ablation: bool, boosting: bool) -> str:
        """The tables of a case in Markdown."""
        whole = self.model(case, WHOLE)
        out = [f"## {case.name}: `{case.folder}` as of {case.as_of}, videos published from then on", "", *cells(whole)]
        out += ["", f"Training: {whole.training}.", ""]
        if ablation or boosting:
            answers = self.queries(case).with_suffix(".answers.parquet")
            rows = []
            models = [self.boosting(case, whole.folder / "bundle")] if boosting else []
            if ablation:
                models += [self.model(case, f"without {part}", f"use_{part} = false\n") for part in case.parts]
                models.append(self.held(case, whole.folder / "bundle"))
            for model in models:
                found = differences(answers, whole.folder / "forecasts.parquet", model.folder / "forecasts.parquet")
                rows.append(ablated(model, found))
            out += [
                "| pooled | nMSE | minus M3TR's, 95 % | pinball | minus M3TR's, 95 % |",
                "|---|---|---|---|---|",
                *rows,
                "",
            ]
        return "\n".join(out)


def cells(model: ModelScores) -> list[str]:
    head = ["| cell | n | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    return head + [
        f"| {name} | {cell['n']:,} | " + " | ".join(f"{cell[column]:.4f}" for column in COLUMNS) + " |"
        for name, cell in model.scores.items()
    ]


def ablated(model: ModelScores, found: dict[str, Difference]) -> str:
    pooled = model.scores["pooled"]
    shown = [f"{pooled[name]:.4f} | {found[name]}" for name in ("nMSE", "pinball")]
    return f"| {model.name} | " + " | ".join(shown) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="?", default="all", choices=[*CASES, TIDEH, "all"])
    parser.add_argument("--ablation", action="store_true", help="also the model without each part")
    parser.add_argument("--boosting", action="store_true", help="also LightGBM with the same inputs")
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"), help="folder that keeps what is made")
    parser.add_argument("--config", type=Path, help="TOML file with training settings of every model")
    args = parser.parse_args()
    data = Path(os.environ.get("M3TR_TEST_DATA", ROOT.parent / "shared" / "data")).resolve()
    config = args.config.read_text(encoding="utf-8").rstrip() + "\n" if args.config else ""
    bench = Bench(data, args.work.resolve(), config)
    chosen = [*CASES, TIDEH] if args.which == "all" else [args.which]
    cases = [case for name in chosen for case in CASES.get(name, ())]
    tables = [bench.case(case, args.ablation, args.boosting) for case in cases]
    tables += [bench.tideh()] if TIDEH in chosen else []
    table = "\n".join(tables)
    (args.work / "accuracy.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()

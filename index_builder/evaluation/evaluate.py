"""`m3tr-build evaluate`: compares a bundle with the baselines, by age and horizon."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from index_builder.baselines.boosting import ENSEMBLES, boosted
from index_builder.baselines.content_retrieval import content_retrieval, has_text
from index_builder.baselines.simple import GrowthFactor, LogLinear, MeanGrowth, Persistence
from index_builder.bundles.forecast import forecast_at
from index_builder.bundles.open_bundle import open_bundle, open_with_growing_bank
from index_builder.cascade.fit import STEPS, PowerLawHawkes, hawkes_growth
from index_builder.datasets.dataset import DataSet
from index_builder.datasets.load import load_and_report, load_dataset
from index_builder.datasets.observed import Observed
from index_builder.progress import progress
from index_builder.report import EXAMPLES, MODEL, Evaluation, examples, write_page
from index_builder.report.summary import utc_minutes
from index_builder.samples.queries import TOLERANCE_H, cut_queries
from index_builder.scoring.cell_scores import POOLED, scores_by_cell
from index_builder.scoring.paired import Difference, differences
from index_builder.scoring.thresholds import FACTORS
from model.bank import EmptyBank
from model.bundle import load_bundle, metric_folder
from model.engagement.bins import HOUR_US
from model.engagement.types import metric_types
from model.errors import DataError
from model.forecaster import Forecaster

_BOOSTING: Final = "gradient boosting"


def evaluate(
    bundle: Path,
    data: Path,
    *,
    published_from_us: int,
    published_before_us: int | None = None,
    ages_h: Sequence[float] = (24.0, 48.0),
    horizons_h: Sequence[float] = (24.0, 72.0, 120.0),
    out: Path | None = None,
    boosting: bool = False,
    report: Path | None = None,
    growing_bank: bool = False,
    metrics: Sequence[str] = (),
    tolerance_h: float = TOLERANCE_H,
) -> dict[str, Any]:
    """Score a bundle on the videos of ``data`` published in [published_from, published_before). Print and return the tables.

    ``metrics`` are those that are scored, by default all metrics of the bundle. One metric gives its table. Several give
    a table for each metric, by name, and their reports have the metric's name before the ending of the file's name.

    The baselines are fitted on videos published before ``published_from_us``, from what was observed up to that time.
    ``boosting`` adds gradient boosting with the model's inputs, which takes minutes, and the paired differences between
    the model and it. ``report`` is the file for the report page. With ``growing_bank``, neighbours and creator features
    may also come from videos published after training, as in a service. For counters, an outcome is a snapshot at most
    ``tolerance_h`` hours away from the wanted horizon.

    Raises:
        DataError: there is no query, a horizon is longer than the trained maximum, the report's folder does not
            exist, or the bundle does not forecast a metric.
    """
    if report is not None and (report.is_dir() or not report.parent.is_dir()):
        raise DataError(f"report: {str(report)!r}; allowed: a file in a folder that exists")
    manifest = load_bundle(bundle).manifest
    if unknown := [name for name in metrics if name not in manifest.metrics]:
        raise DataError(f"metric: {unknown[0]!r}; allowed: {', '.join(manifest.metrics)}, which this bundle forecasts")
    if max(horizons_h) * HOUR_US > manifest.max_horizon_us:
        raise DataError(
            f"horizons: {max(horizons_h):g} h; allowed: up to {manifest.max_horizon_us / HOUR_US:g} h, the trained maximum"
        )
    dataset = load_and_report(data)
    chosen = tuple(metrics) or manifest.metrics
    for metric in chosen:
        metric_types(metric, dataset.types)
    period = published_from_us, published_before_us
    tables = {}
    for metric in chosen:
        page = report
        if report is not None and len(chosen) > 1:
            page = report.with_stem(f"{report.stem}-{Path(metric_folder(metric)).name}")
        tables[metric] = _evaluate(
            bundle, data, dataset, metric, period, ages_h, horizons_h, tolerance_h, boosting, page, growing_bank
        )
        _print(tables[metric], metric if len(chosen) > 1 else "")
    table = tables if len(chosen) > 1 else tables[chosen[0]]
    if out is not None:
        out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return table


def _evaluate(
    bundle: Path,
    data: Path,
    dataset: DataSet,
    metric: str,
    period: tuple[int, int | None],
    ages_h: Sequence[float],
    horizons_h: Sequence[float],
    tolerance_h: float,
    boosting: bool,
    report: Path | None,
    growing_bank: bool,
) -> dict[str, Any]:
    """Score one metric of a bundle, and return the table."""
    published_from_us, published_before_us = period
    manifest = load_bundle(bundle).manifest.of(metric)
    observed = Observed.of(dataset, metric)
    published = dataset.published_us
    end = dataset.last_us() or 0
    tested = published >= published_from_us
    if published_before_us is not None:
        tested &= published < published_before_us
    queries = cut_queries(observed, np.flatnonzero(tested), ages_h, horizons_h, end, tolerance_h)
    within = queries.horizon_us <= manifest.max_horizon_us
    queries = queries.take(np.flatnonzero(within))
    if not len(queries.video):
        raise DataError("published-from: no video of this period has an observation at these ages and horizons")
    with (
        open_with_growing_bank(bundle, observed, int(queries.now_us.max()))
        if growing_bank
        else open_bundle(bundle) as forecaster
    ):
        old = np.flatnonzero(published < published_from_us)
        past = cut_queries(observed, old, ages_h, horizons_h, published_from_us, tolerance_h)
        growths: dict[str, NDArray[np.float64]] = {}
        if len(past.video):
            for baseline in (MeanGrowth(), Persistence(), GrowthFactor(), LogLinear()):
                growths[baseline.name] = baseline.fit(past.pairs).predict(queries.pairs)[:, None]
            if observed.continuous:
                with progress(PowerLawHawkes.name, STEPS) as bar:
                    growth = hawkes_growth(
                        observed, queries, old, ages_h, horizons_h, published_from_us, advance=bar.advance
                    )
                growths[PowerLawHawkes.name] = growth[:, None]
            if manifest.parts.content and has_text(observed):
                with progress("content retrieval", len(queries.video)) as bar:
                    growth = content_retrieval(forecaster, observed, queries, advance=bar.advance)[:, None]
                growths["content retrieval"] = np.where(np.isnan(growth), growths[MeanGrowth.name], growth)
        if boosting:
            known = Observed.of(load_dataset(data, before_us=published_from_us), manifest.metric)
            with progress(_BOOSTING, ENSEMBLES) as bar:
                growths[_BOOSTING] = boosted(
                    known, observed, queries, manifest.schema, published_from_us, advance=bar.advance
                )
        arms = {MODEL: forecaster, f"{MODEL} without retrieval": Forecaster(load_bundle(bundle), EmptyBank())}
        for name, arm in arms.items():
            with progress(f"forecast, {name}", len(queries.video)) as bar:
                counts = forecast_at(arm, observed, queries.video, queries.now_us, queries.horizon_us, bar.advance)
            growths[name] = np.log2((1 + counts) / (1 + queries.pairs.value_now[:, None]))
        with progress("scores", len(growths)) as bar:
            table = scores_by_cell(queries, growths, bar.advance)
        if boosting:
            found = differences(queries.video, queries.pairs.growth, growths[_BOOSTING], growths[MODEL])
            table[MODEL][POOLED]["minus"] = {_BOOSTING: {name: asdict(value) for name, value in found.items()}}
        if report is not None:
            with progress("report", EXAMPLES) as bar:
                looked_at = examples(forecaster, observed, queries, bar.advance)
            times = published[queries.video]
            about = (
                f"{len(np.unique(queries.video)):,} videos of {data.resolve().name}, published from {utc_minutes(int(times.min()))} to "
                f"{utc_minutes(int(times.max()))}"
            )
            learned = bool(times.min() < manifest.training["as_of_us"])
            write_page(report, Evaluation(manifest, dataset.videos, queries, growths, table, about, looked_at, learned))
    return table


def _print(table: dict[str, Any], metric: str) -> None:
    shown = Table(
        title=f"{metric}{': growth' if metric else 'Growth'} log2((1 + count then) / (1 + count now)); nMSE with a 95 % interval from a "
        "bootstrap over videos. nMSE and SRC score the mean, MAE the median"
    )
    shown.add_column("cell")
    shown.add_column("model")
    for name in ("n", "nMSE", "95 %", "MAE", "SRC", "cover", "width", "pinball", "50 %", "90 %"):
        shown.add_column(name, justify="right")
    for cell in next(iter(table.values())):
        for model, cells in table.items():
            c = cells[cell]
            low, high = c["intervals"]["nmse"]
            values = [
                c["nmse"],
                None,
                c["mae"],
                c["src"],
                c["cover"],
                c["width"],
                c["pinball"],
                c["cover50"],
                c["cover90"],
            ]
            texts = ["-" if v is None or not np.isfinite(v) else f"{v:.4f}" for v in values]
            texts[1] = f"{low:.3f} to {high:.3f}"
            shown.add_row(cell, model, f"{c['n']:,}", *texts)
        shown.add_section()
    console = Console(width=140 if not Console().is_terminal else None)
    console.print(shown)
    for rival, scores in table[MODEL][POOLED].get("minus", {}).items():
        told = ", ".join(f"{name} {Difference(**difference)}" for name, difference in scores.items())
        console.print(
            f"{MODEL} minus {rival}, all cells, with a paired 95 % interval from a bootstrap over videos: {told}"
        )
    if tenths := table[MODEL][POOLED].get("thresholds"):
        console.print(_reliability(tenths))


def _reliability(tenths: list[dict[str, Any]]) -> Table:
    factors = ", ".join(f"{factor:g}" for factor in FACTORS)
    shown = Table(title=f"{MODEL}: probabilities of passing the present count times {factors}")
    for name in ("probability", "n", "forecast", "passed"):
        shown.add_column(name, justify="right")
    for tenth in tenths:
        shares = (f"{tenth[name]:.3f}" for name in ("probability", "passed"))
        shown.add_row(f"{tenth['from']:.1f} to {tenth['from'] + 0.1:.1f}", f"{tenth['n']:,}", *shares)
    return shown

"""Writes a report's text: a summary, and facts about the model and the data."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np

from index_builder.report.bootstrap import VideoBootstrap
from index_builder.report.evaluation import MODEL, Evaluation
from index_builder.report.svg import TIMES, factor, hours
from index_builder.report.verdict import verdict
from index_builder.scoring import answers
from index_builder.scoring.cell_scores import POOLED
from index_builder.scoring.metrics import HIGH, LOW
from model.bundle import REPORT, metric_folder
from model.engagement.bins import HOUR_US, SECOND_US


def utc_minutes(us: int) -> str:
    """Return a time in microseconds as readable text, to the minute."""
    return datetime.fromtimestamp(us / SECOND_US, UTC).strftime("%Y-%m-%d %H:%M UTC")


def metric_in_words(metric: str) -> str:
    """Return the name of a metric in words."""
    return "all engagement (total)" if metric == "total" else metric


def summary(evaluation: Evaluation, bootstrap: VideoBootstrap) -> str:
    """Return the summary of an evaluation as one paragraph."""
    queries, growth = evaluation.queries, evaluation.growths[MODEL]
    y, n = queries.pairs.growth, len(queries.video)
    miss = np.abs(answers.median(growth) - y)
    with np.errstate(over="ignore"):
        half, nine_tenths = (factor(float(f)).removeprefix(TIMES) for f in np.exp2(np.quantile(miss, [0.5, 0.9])))
    low, high = answers.quantile(growth, LOW), answers.quantile(growth, HIGH)
    assert low is not None and high is not None
    held = bootstrap.mean(((y >= low) & (y <= high)).astype(np.float64))
    words = []
    if found := verdict(evaluation, bootstrap):
        where = (
            f"on the videos that still grow ({found.videos:,} videos; ages and horizons at which counts hardly change are left out, "
            "because every method is right there)"
            if found.growing
            else f"on {found.videos:,} videos"
        )
        words.append(f"In squared error of the growth, {where}, {MODEL} is {found.sentence(evaluation)}.")
    words.append(
        f"{n:,} forecasts for {len(np.unique(queries.video)):,} videos were compared with what really happened. "
        f"A typical forecast was off by a factor of {half}: half of the forecasts had a smaller error, upwards or downwards. "
        f"Nine in ten forecasts were within a factor of {nine_tenths}. The interval should contain the outcome "
        f"in 80% of cases. It contained the outcome in {held.value:.1%} ({held.low:.1%} to {held.high:.1%})."
    )
    nmse = evaluation.table[MODEL][POOLED]["nmse"]
    if np.isfinite(nmse):
        words.append(
            f"The model explained {max(1 - nmse, 0):.0%} of the differences in growth between videos. The nMSE is {nmse:.3f}: 0 would be "
            "perfect, and 1 is as good as always forecasting the mean."
        )
    return " ".join(words)


def facts(evaluation: Evaluation) -> dict[str, str]:
    """Return facts about the model, its training data and the scored videos."""
    manifest, queries = evaluation.manifest, evaluation.queries
    training, schema, own = manifest.training, manifest.schema, manifest.evaluation
    ahead = queries.horizon_us
    ages = queries.pairs.age_s * SECOND_US
    passes = training.get("passes", {})
    out = {
        "Model": f"M3TR {manifest.version[:12]}".rstrip()
        + f": a Mamba-Hawkes network of width {manifest.shape.d_model} and depth {manifest.shape.n_layers} that reads each "
        f"video's engagement, and {manifest.neighbours} similar past videos",
        "It forecasts": f"{metric_in_words(schema.metric)}, up to {schema.max_horizon_us / HOUR_US:g} h ahead, with an interval",
        "It reads": f"{', '.join(schema.types)}; title, tags and creator; {_many(len(schema.categories), 'category', 'categories')}, "
        f"{_many(len(schema.languages), 'language', 'languages')}",
        "Trained on": f"{training['videos']:,} videos published from {utc_minutes(training['first_published_us'])}, as known at "
        f"{utc_minutes(training['as_of_us'])}; data {training['data_fingerprint'][:12]}",
        "Training": f"{training['samples']:,} samples for learning, {training['held_back']:,} held out for the scores"
        + (
            "; then a second model learned from all samples with the same number of passes; "
            if training["learned_all"]
            else "; "
        )
        + f"seed {training['seed']}, on {training['device']}"
        + "".join(f"; {name}: best pass {p['best']} of {len(p['held_back_loss'])}" for name, p in passes.items()),
        "Scored on": evaluation.about,
        "Similarity": f"{manifest.content_weight:.0%} content, {1 - manifest.content_weight:.0%} trajectory",
    }
    if schema.further:
        reports = (f"{metric_in_words(metric)} ({metric_folder(metric)}/{REPORT})" for metric in schema.further)
        out["It also forecasts"] = ", ".join(reports)
    if off := [name for name, on in asdict(manifest.parts).items() if not on]:
        out["Switched off"] = ", ".join(off)
    if len(ahead):
        out["Asked"] = (
            f"at ages of {hours(ages.min())} to {hours(ages.max())}, for {hours(ahead.min())} to {hours(ahead.max())} ahead"
        )
    if "rate_factor" in own:
        low, high = own["rate_factor"]
        out["Rates"] = (
            f"the expected engagement of the next hour is {low:.2f} to {high:.2f} times the median forecast of its growth, "
            "counting only forecasts of half a count or more. If growth is skewed, the median is below the mean."
        )
    if "log_likelihood_per_token" in own:
        out["Log-likelihood"] = f"{own['log_likelihood_per_token']:.3f} nats per token and type, on holdout videos"
    return out


def _many(n: int, one: str, more: str) -> str:
    return f"{n or 'no'} known {one if n == 1 else more}"

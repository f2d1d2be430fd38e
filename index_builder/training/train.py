"""`m3tr-build train`: trains a bundle and its bank from a data set as known at a given time."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from index_builder.datasets.check import check_dataset
from index_builder.datasets.findings import Finding, console, report
from index_builder.datasets.load import load_dataset
from index_builder.samples.network_inputs import encode_text
from index_builder.training.bundle_writer import BundleWriter
from index_builder.training.config import TrainConfig
from index_builder.training.distributed import join_process_group
from index_builder.training.duration_estimate import duration_in_words, estimate_s
from index_builder.training.metrics.choice import observed_metrics
from index_builder.training.plan import Plan
from index_builder.training.staging import staging_folder, staging_path
from index_builder.training.training_run import TrainingRun
from model.errors import DataError
from model.network import SENTENCE_DIM

_MIN_VIDEOS: Final = 50


def train(
    data: Path,
    *,
    as_of_us: int,
    metric: str | Sequence[str] = (),
    out: Path,
    device: str = "auto",
    epochs: int | None = None,
    seed: int = 0,
    config: Path | None = None,
) -> str | None:
    """Train a bundle and fill its bank. Only data up to ``as_of_us`` is used.

    ``metric`` names the metrics that the bundle forecasts, the first one first. Without any, the bundle forecasts each
    counted type that most videos have.

    The newest videos are the holdout. One half of the holdout decides when to stop. The other half is scored for the
    report. The whole holdout calibrates the intervals. ``index_builder.training.training_run`` explains the use of the
    holdout.

    If a training run was killed and is started again, the run resumes after its last complete pass over the data. Under
    torchrun all processes train, and only the first process does everything else. The findings of ``check`` and an
    estimate of the duration are printed to standard error first.

    Returns:
        A summary as text, or None on processes other than the first.

    Raises:
        DataError: the data set, metric, device or a setting cannot be used, or there is nothing to learn from. Then
            nothing is written.
    """
    settings = TrainConfig.read(config)
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"out: {str(out)!r} exists and is not empty; allowed: a new folder")
    torch_device = _device(device)
    first_process = os.environ.get("RANK", "0") == "0"
    if first_process:
        _print_findings(check_dataset(data))
    dataset = load_dataset(data, before_us=as_of_us)
    if len(dataset.videos) < _MIN_VIDEOS:
        raise DataError(
            f"{data}: {len(dataset.videos)} videos published up to the as-of time; needed: at least {_MIN_VIDEOS}"
        )
    observed, *further = observed_metrics(dataset, [metric] if isinstance(metric, str) else metric)
    settings = settings.suited_to(len(dataset.videos))
    if first_process:
        duration = duration_in_words(estimate_s(observed, settings, len(further)))
        also = f", then {', '.join(each.name for each in further)}" if further else ""
        print(
            f"{len(dataset.videos):,} videos, {len(observed.totals):,} rows of {observed.name}{also}: training takes {duration}",
            file=sys.stderr,
        )
    with (
        join_process_group(torch_device) as group,
        staging_folder(out) if group.is_first else nullcontext(staging_path(out)) as folder,
    ):
        plan = Plan(observed, settings, as_of_us, group, seed, further)
        if group.is_first:
            _print_inputs(plan)
        trained = TrainingRun(plan, _sentences(plan), staging_path(out)).train()
        if not group.is_first:
            return None
        verdicts = BundleWriter(plan, trained).write(folder)
    if not further:
        return f"{out}: bundle of {observed.name}. On holdout videos it is {verdicts[observed.name]}\nnext: m3tr-serve --bundle {out}"
    lines = [f"  {name}: {verdict}" for name, verdict in verdicts.items()]
    return "\n".join(
        [f"{out}: bundle of {', '.join(verdicts)}. On holdout videos it is", *lines, f"next: m3tr-serve --bundle {out}"]
    )


def _print_findings(findings: list[Finding]) -> None:
    """Print errors and warnings, so that they are visible before training starts."""
    if serious := [finding for finding in findings if finding.severity != "info"]:
        report(serious, console(stderr=True))


def _print_inputs(plan: Plan) -> None:
    """Print the further columns that the model reads, and those that it does not read, with the reasons."""
    inputs = [(c.name, c.attribute is not None, c.reason) for c in plan.choices]
    inputs += [(c.name, c.signal is not None, c.reason) for c in plan.signals]
    inputs += [(name, False, reason) for name, reason in plan.data.unread.items()]
    for heading, wanted in (("further inputs", True), ("columns not read", False)):
        if found := [f"{name} ({reason})" for name, read, reason in inputs if read == wanted]:
            print(f"{heading}: {', '.join(found)}", file=sys.stderr)


def _device(name: str) -> str:
    if name not in {"auto", "cpu", "cuda"}:
        raise DataError(f"device: {name!r}; allowed: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("device: 'cuda', but PyTorch finds no CUDA device; allowed here: auto, cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _sentences(plan: Plan) -> NDArray[np.float32]:
    """Return the sentence vectors of all videos. The first process encodes them for all processes."""
    videos = plan.data.videos
    sentence = np.zeros((len(videos), SENTENCE_DIM), np.float32)
    with plan.step("read text", len(videos)) as advance:
        if plan.process_group.is_first:
            sentence = encode_text(videos, lambda n: advance(n))
    return plan.process_group.broadcast(sentence)

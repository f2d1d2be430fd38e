"""What the routes answer, as plain JSON values."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import orjson

from model.engagement.bins import SECOND_US
from model.engagement.history import History
from model.forecast import Neighbour
from service.forecasts.answer import Answer
from service.ingest import outcome_json
from service.store.snapshot import Snapshot
from service.store.store import AppliedRows
from service.times import iso


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _seconds(us: int) -> float | int:
    return us // SECOND_US if us % SECOND_US == 0 else us / SECOND_US


def _neighbour(neighbour: Neighbour) -> dict[str, Any]:
    return {
        "video_id": neighbour.video_id,
        "similarity": _number(neighbour.similarity),
        "content_similarity": _number(neighbour.content_similarity),
        "trajectory_similarity": _number(neighbour.trajectory_similarity),
        "growth": {str(_seconds(us)): _number(factor) for us, factor in neighbour.growth.items()},
    }


def forecast_json(answer: Answer) -> bytes:
    """A forecast as it is sent."""
    if answer.json is None:
        answer.json = orjson.dumps(forecast(answer))
    return answer.json


def forecast(answer: Answer) -> dict[str, Any]:
    """A forecast: quantiles are cumulative counts at ``time``; ``growth`` by horizon_s, as a multiple of the count."""
    made = answer.forecast
    return {
        "video_id": answer.snapshot.video.video_id,
        "at": iso(made.now_us),
        "metric": made.metric,
        "counts": made.counts,
        "value_now": _number(made.value_now),
        "forecasts": [
            {
                "horizon_s": _seconds(horizon_us),
                "time": iso(made.now_us + horizon_us),
                "q0.1": float(low),
                "q0.5": float(middle),
                "q0.9": float(high),
            }
            for horizon_us, (low, middle, high) in zip(made.horizons_us, made.quantiles.tolist(), strict=True)
        ],
        "intensity_per_hour": {kind: _number(rate) for kind, rate in made.intensity.items()},
        "neighbours": [_neighbour(neighbour) for neighbour in made.neighbours],
        "model_version": answer.model_version,
        "state_age_s": _number(made.state_age_s),
        "cold_start": made.cold_start,
        "as_of_bins": answer.as_of_bins,
        "degraded": made.degraded,
        "extrapolated": made.extrapolated,
        "stale": answer.stale,
    }


def prediction_json(answer: Answer, applied: AppliedRows) -> bytes:
    """A forecast as it is sent, with what became of the rows that came with the question."""
    rows = {
        "accepted": applied.outcome.accepted,
        "duplicate": applied.outcome.duplicate,
        "corrected": applied.outcome.corrected,
        "parked_applied": applied.parked_applied,
        "parked_rejected": applied.parked_rejected,
        **outcome_json.ignored(applied.outcome),
    }
    return forecast_json(answer)[:-1] + b',"rows":' + orjson.dumps(rows) + b"}"


def video(snapshot: Snapshot, stale: bool) -> dict[str, Any]:
    """A video as it is stored."""
    metadata = {name: value for name, value in asdict(snapshot.video).items() if value is not None}
    published_us = metadata.pop("published_us")
    return {
        **metadata,
        "published_at": iso(published_us),
        "version": snapshot.version,
        "counts": snapshot.history.totals(),
        "fed_by": {kind: series.mode for kind, series in snapshot.history.series.items()},
        "bins": _bins(snapshot.history),
        "newest_row_at": None if snapshot.newest_us is None else iso(snapshot.newest_us),
        "stale": stale,
    }


def _bins(history: History) -> int:
    return len({int(index) for series in history.series.values() for index in series.bins})

"""Encodes a stored video, and a prediction, as JSON."""

from __future__ import annotations

from typing import Any

import orjson

from model.engagement.history import History
from service.forecasts.forecast_json import forecast_json
from service.forecasts.forecast_result import ForecastResult
from service.ingest.outcome_json import ignored_counters
from service.store.snapshot import Snapshot
from service.store.store import AppliedRows
from service.times import iso


def video_fields(snapshot: Snapshot, stale: bool) -> dict[str, Any]:
    """Return the members that describe a stored video."""
    return {
        "video_id": snapshot.video.video_id,
        **snapshot.video.metadata(),
        "published_at": iso(snapshot.video.published_us),
        "version": snapshot.version,
        "counts": snapshot.history.totals(),
        "fed_by": {kind: series.mode for kind, series in snapshot.history.series.items()},
        "bins": _bins(snapshot.history),
        **({"signals": signals} if (signals := _newest_readings(snapshot.history)) else {}),
        "newest_row_at": None if snapshot.newest_us is None else iso(snapshot.newest_us),
        "stale": stale,
    }


def prediction_json(result: ForecastResult, applied: AppliedRows) -> bytes:
    """Return the encoded forecast, together with the outcome of the rows that came with the request."""
    rows = {
        "accepted": applied.outcome.accepted,
        "duplicate": applied.outcome.duplicate,
        "corrected": applied.outcome.corrected,
        "parked_applied": applied.parked_applied,
        "parked_rejected": applied.parked_rejected,
        **ignored_counters(applied.outcome),
    }
    return forecast_json(result)[:-1] + b',"rows":' + orjson.dumps(rows) + b"}"


def _newest_readings(history: History) -> dict[str, float]:
    """Return the newest reading of each signal."""
    return {name: float(readings.values[-1]) for name, readings in history.signals.items()}


def _bins(history: History) -> int:
    return len({int(index) for series in history.series.values() for index in series.bins})

"""Encodes a forecast as JSON."""

from __future__ import annotations

import math
from typing import Any

import orjson

from model.engagement.bins import SECOND_US
from model.forecast import Neighbour
from service.forecasts.forecast_result import ForecastResult
from service.times import iso


def forecast_json(result: ForecastResult) -> bytes:
    """Return the encoded response. Each result is encoded only once."""
    if result.json is None:
        result.json = orjson.dumps(forecast_fields(result))
    return result.json


def forecast_fields(result: ForecastResult) -> dict[str, Any]:
    """Return the members of the response.

    Quantiles are cumulative counts at ``time``. A neighbour's ``growth`` maps a horizon in seconds to the factor by which the neighbour's
    count grew over that horizon. The horizon begins when the neighbour was as old as the forecast video is now.
    """
    forecast = result.forecast
    return {
        "video_id": result.snapshot.video.video_id,
        "at": iso(forecast.now_us),
        "metric": forecast.metric,
        "counts": forecast.counts,
        "value_now": _number(forecast.value_now),
        "forecasts": [
            {
                "horizon_s": _seconds(horizon_us),
                "time": iso(forecast.now_us + horizon_us),
                "q0.1": float(low),
                "q0.5": float(middle),
                "q0.9": float(high),
            }
            for horizon_us, (low, middle, high) in zip(forecast.horizons_us, forecast.quantiles.tolist(), strict=True)
        ],
        "intensity_per_hour": {kind: _number(rate) for kind, rate in forecast.intensity.items()},
        "neighbours": [_neighbour(neighbour) for neighbour in forecast.neighbours],
        "model_version": result.model_version,
        "state_age_s": _number(forecast.state_age_s),
        "cold_start": forecast.cold_start,
        "as_of_bins": result.as_of_bins,
        "degraded": forecast.degraded,
        "extrapolated": forecast.extrapolated,
        "stale": result.stale,
    }


def _neighbour(neighbour: Neighbour) -> dict[str, Any]:
    return {
        "video_id": neighbour.video_id,
        "similarity": _number(neighbour.similarity),
        "content_similarity": _number(neighbour.content_similarity),
        "trajectory_similarity": _number(neighbour.trajectory_similarity),
        "growth": {str(_seconds(us)): _number(factor) for us, factor in neighbour.growth.items()},
    }


def _number(value: float | None) -> float | None:
    """Return a finite number unchanged. Return None instead of infinity and NaN, which JSON cannot express."""
    return None if value is None or not math.isfinite(value) else float(value)


def _seconds(us: int) -> float | int:
    return us // SECOND_US if us % SECOND_US == 0 else us / SECOND_US

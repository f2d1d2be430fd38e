"""Encodes a forecast as JSON."""

from __future__ import annotations

import math
from typing import Any, Final

import orjson

from model.engagement.bins import SECOND_US
from model.forecast import Forecast, Neighbour, ThresholdForecast
from model.quantiles.head import QUANTILES
from service.forecasts.forecast_result import ForecastResult
from service.times import iso

QUANTILE_NAMES: Final = tuple(f"q{level}" for level in QUANTILES)
"""Names of the quantiles in a response: q0.05 to q0.95."""


def forecast_json(result: ForecastResult) -> bytes:
    """Return the encoded response. Each result is encoded only once."""
    if result.json is None:
        result.json = orjson.dumps(forecast_fields(result))
    return result.json


def forecast_fields(result: ForecastResult) -> dict[str, Any]:
    """Return the members of the response.

    Quantiles and ``mean`` are cumulative counts at ``time``; ``Forecast`` says which mean it is. A neighbour's ``growth`` maps a horizon in
    seconds to the factor by which the neighbour's count grew over that horizon. The horizon begins when the neighbour was as old as the
    forecast video is now. The member ``thresholds`` is absent unless thresholds were asked. A threshold's ``probability`` maps a horizon
    in seconds to the probability that the count is at least the threshold at that horizon. Its ``passed_by`` maps a probability to the
    time by which the threshold is passed with it, or to null if this is later than the longest trained horizon.

    ``metric`` and what belongs to it are those of the first requested metric. The member ``further`` is absent unless more than one
    metric was asked. It lists what belongs to each of the others.
    """
    forecast = result.forecast
    return {
        "video_id": result.snapshot.video.video_id,
        "at": iso(forecast.now_us),
        "counts": forecast.counts,
        **_of_metric(forecast),
        **({"further": [_of_metric(made) for made in result.further]} if result.further else {}),
        "model_version": result.model_version,
        "state_age_s": _number(forecast.state_age_s),
        "cold_start": forecast.cold_start,
        "as_of_bins": result.as_of_bins,
        "degraded": forecast.degraded,
        "stale": result.stale,
    }


def _of_metric(forecast: Forecast) -> dict[str, Any]:
    """Return the members that belong to one metric."""
    return {
        "metric": forecast.metric,
        "value_now": _number(forecast.value_now),
        "forecasts": [
            {
                "horizon_s": _seconds(horizon_us),
                "time": iso(forecast.now_us + horizon_us),
                "mean": mean,
                **dict(zip(QUANTILE_NAMES, quantiles, strict=True)),
            }
            for horizon_us, mean, quantiles in zip(
                forecast.horizons_us, forecast.mean.tolist(), forecast.quantiles.tolist(), strict=True
            )
        ],
        **({"thresholds": [_threshold(t, forecast) for t in forecast.thresholds]} if forecast.thresholds else {}),
        "intensity_per_hour": {kind: _number(rate) for kind, rate in forecast.intensity.items()},
        "neighbours": [_neighbour(neighbour) for neighbour in forecast.neighbours],
        "extrapolated": forecast.extrapolated,
    }


def _threshold(passing: ThresholdForecast, forecast: Forecast) -> dict[str, Any]:
    return {
        "threshold": passing.threshold,
        "probability": dict(
            zip((str(_seconds(us)) for us in forecast.horizons_us), passing.probabilities.tolist(), strict=True)
        ),
        "passed_by": {
            str(confidence): None if us is None else iso(us) for confidence, us in passing.passed_by_us.items()
        },
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

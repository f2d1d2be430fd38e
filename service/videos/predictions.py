"""Handles predictions. One call registers a video, stores its rows, and makes its forecast."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from model.engagement.history import Mode
from service.forecasts.engine import Engine
from service.forecasts.forecast_result import ForecastResult
from service.ingest.handler import IngestHandler
from service.ingest.row_parser import RowParser
from service.problems import DamagedRecord, Internal, Invalid, NotFound, Problem
from service.settings import ForecastSettings
from service.store.rows.event_ids import event_id
from service.store.rows.outcome import Outcome, Rejection
from service.store.rows.row import InputRow
from service.store.snapshot_cache import SnapshotCache
from service.store.store import AppliedRows, Registration, Store
from service.times import iso
from service.videos.forms import parse_form
from service.videos.handler import VideoHandler
from service.videos.horizons import parse_horizons
from service.videos.metrics import parse_metrics
from service.videos.request_bodies import PredictBody
from service.videos.thresholds import parse_thresholds

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A validated prediction request. Nothing is stored before the whole request is valid."""

    video_id: str
    registration: Registration | None
    rows: list[InputRow]
    at_us: int | None
    horizons_us: tuple[int, ...]
    thresholds: tuple[float, ...]
    metrics: tuple[str, ...]
    ignored: Mapping[str, int]
    """Number of ignored rows for each counter that the served bundle does not know. The keys are names of counters."""

    @property
    def writes(self) -> bool:
        """Whether the prediction changes the store."""
        return self.registration is not None or bool(self.rows)


class ForecastHandler:
    """Handles requests to /predict and /videos/{id}/forecast.

    ``client`` is the name of the API key that a request came with, or "" without a key. ``request`` is the request's idempotency key.
    """

    def __init__(
        self,
        store: Store,
        snapshots: SnapshotCache,
        engine: Engine,
        videos: VideoHandler,
        ingest: IngestHandler,
        parser: RowParser,
        settings: ForecastSettings,
        *,
        max_horizon_us: int,
    ) -> None:
        self._store, self._snapshots, self._engine = store, snapshots, engine
        self._videos, self._ingest, self._parser = videos, ingest, parser
        self._settings, self._max_horizon_us = settings, max_horizon_us

    def horizons(self, values: list[Any] | None) -> tuple[int, ...]:
        """Return horizons in microseconds. Raises Invalid if one exceeds the bundle's longest horizon."""
        return parse_horizons(values, self._max_horizon_us, self._settings.max_horizons)

    def metrics(self, values: list[Any] | None) -> tuple[str, ...]:
        """Return the metrics to forecast, or none for the bundle's first one. Raises Invalid if the active bundle does not forecast one."""
        return parse_metrics(values, self._engine.active.forecaster.manifest.metrics)

    async def forecast(
        self,
        video_id: str,
        at_us: int | None,
        horizons_us: tuple[int, ...],
        thresholds: tuple[float, ...] = (),
        metrics: tuple[str, ...] = (),
    ) -> ForecastResult:
        """Return the forecast of a registered video."""
        if at_us is not None:
            self._parser.check_future("at", at_us)
        return await self._engine.forecast(video_id, at_us, horizons_us, thresholds, metrics)

    async def parse(self, body: object, client: str = "", request: str | None = None) -> Prediction:
        """Validate a whole prediction. One invalid row makes the whole prediction invalid.

        If ``request`` is given, events without an id get an id derived from it.
        """
        form = parse_form(PredictBody, body)
        metadata = dict(form.video)
        video_id = self._videos.identify(metadata.pop("video_id", None))
        horizons_us, thresholds = self.horizons(form.horizons_s), parse_thresholds(form.thresholds)
        metrics = self.metrics(form.metrics)
        rows: list[InputRow] = []
        ignored: dict[str, int] = {}
        given: tuple[tuple[Mode, list[Any]], ...] = (("events", form.events), ("counters", form.counters))
        for mode, items in given:
            if not items:
                continue
            parsed = await self._ingest.parse(mode, items, video_id, client=client.encode())
            _raise_first(parsed.refused)
            rows += parsed.rows if request is None else [_identified(row, request) for row in parsed.rows]
            ignored.update(parsed.ignored)
        at_us = None if form.at is None else self._parser.check_future("at", form.at)
        registration = None
        if metadata:
            registration = self._videos.registration(self._videos.parse_metadata(metadata, "video"), client)
        if registration is not None and at_us is not None and at_us < registration.published_us:
            raise Invalid("at", iso(at_us), f"published_at ({iso(registration.published_us)}) or later")
        return Prediction(video_id, registration, rows, at_us, horizons_us, thresholds, metrics, ignored)

    async def predict(self, prediction: Prediction) -> tuple[ForecastResult, AppliedRows]:
        """Register the video, store its rows, and forecast. Return the forecast and the outcome of the rows."""
        video_id, applied = prediction.video_id, AppliedRows(Outcome())
        if prediction.registration is not None:
            applied = await self._videos.store_registration(video_id, prediction.registration, prediction.rows)
        elif prediction.rows:
            snapshot, _ = await self._snapshots.get(video_id)
            if snapshot is None:
                raise _unregistered()
            applied = (await self._store.apply({video_id: prediction.rows}, strict=True))[video_id]
        applied.outcome.ignore(prediction.ignored)
        self._ingest.count("predict", applied.outcome)
        _raise_first(applied.outcome.rejections)
        try:
            asked = (prediction.at_us, prediction.horizons_us, prediction.thresholds, prediction.metrics)
            return await self._engine.forecast(video_id, *asked), applied
        except NotFound:
            raise _unregistered() from None

    async def predict_all(
        self, bodies: Sequence[object], check_write: Callable[[], None], client: str = "", request: str | None = None
    ) -> list[tuple[ForecastResult, AppliedRows] | Problem]:
        """Return each prediction's result or problem, in order.

        For an invalid prediction, nothing is stored, and the other predictions are not affected. Predictions of the same video are made in
        order. ``check_write`` raises if the client may not write.
        """
        if not 1 <= len(bodies) <= self._settings.max_batch_predictions:
            allowed = f"1 to {self._settings.max_batch_predictions} predictions in one request"
            raise Invalid("body", f"{len(bodies)} predictions", allowed)
        results: dict[int, tuple[ForecastResult, AppliedRows] | Problem] = {}
        by_video: dict[str, list[tuple[int, Prediction]]] = {}
        for index, body in enumerate(bodies):
            await asyncio.sleep(0)
            try:
                own = None if request is None else f"{request} {index}"
                prediction = await self.parse(body, client, own)
                if prediction.writes:
                    check_write()
                by_video.setdefault(prediction.video_id, []).append((index, prediction))
            except Problem as problem:
                results[index] = problem
        slots = asyncio.Semaphore(self._settings.batch_forecasts)

        async def predict_in_order(predictions: list[tuple[int, Prediction]]) -> None:
            for index, prediction in predictions:
                async with slots:
                    try:
                        results[index] = await self.predict(prediction)
                    except Problem as problem:
                        results[index] = problem
                    except Exception:
                        log.exception("a prediction failed")
                        results[index] = Internal("the service failed; its log has the reason")

        await asyncio.gather(*map(predict_in_order, by_video.values()))
        return [results[index] for index in range(len(bodies))]


def _identified(row: InputRow, request: str) -> InputRow:
    """Return a row that has an id. An event without an id gets one derived from the request's idempotency key."""
    return replace(row, id=event_id(request, row.index)) if row.mode == "events" and row.id is None else row


def _unregistered() -> Invalid:
    return Invalid("published_at", "missing", "the publication time: this video is not registered yet")


def _raise_first(rejected: list[Rejection]) -> None:
    """Raise the first rejection, if any, as a problem of the whole request."""
    for first in rejected[:1]:
        if first.reason == "damaged":
            raise DamagedRecord(first.value, "its rows could not be stored")
        field = f"{first.mode}[{first.index}].{first.field}"
        raise Invalid(field, first.value, first.allowed, reason=first.reason, rejected=len(rejected))

"""Videos: registered, read back, forgotten, and predicted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from model.engagement.history import Mode
from model.errors import BankError
from service.forecasts.answer import Answer
from service.forecasts.engine import Engine
from service.forecasts.request_bodies import CorrectionBody, PredictBody, VideoBody, parse_form, parse_horizons
from service.forgetting.forgetting import Forgetting
from service.http.audit import video_digest
from service.ingest.accepted_types import AcceptedTypes
from service.ingest.handler import IngestHandler
from service.ingest.row_parser import RowParser, parse_identifier
from service.metrics import Metrics
from service.problems import DamagedRecord, Internal, Invalid, NotFound, Problem, Unavailable
from service.settings import Settings
from service.store.correction import Correction
from service.store.replies import Corrected
from service.store.rows.event_ids import event_id
from service.store.rows.outcome import Outcome, Rejection
from service.store.rows.row import InputRow
from service.store.snapshot import Snapshot
from service.store.snapshot_cache import SnapshotCache
from service.store.store import AppliedRows, Registration, Store
from service.times import iso

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A validated prediction: nothing is stored before all of it is known to be good."""

    video_id: str
    registration: Registration | None
    rows: list[InputRow]
    at_us: int | None
    horizons_us: tuple[int, ...]
    ignored: Mapping[str, int]
    """Counters of the rows that the served bundle does not know: how many rows, by counter."""

    @property
    def writes(self) -> bool:
        """Whether answering it changes the store."""
        return self.registration is not None or bool(self.rows)


class ForecastHandler:
    """The handlers behind /videos and /predict."""

    def __init__(
        self,
        store: Store,
        histories: SnapshotCache,
        engine: Engine,
        forgetting: Forgetting,
        ingest: IngestHandler,
        parser: RowParser,
        catalog: AcceptedTypes,
        settings: Settings,
        metrics: Metrics,
        max_horizon_us: int,
    ) -> None:
        self._store, self._histories, self._engine = store, histories, engine
        self._forgetting = forgetting
        self._ingest, self._parser, self._catalog = ingest, parser, catalog
        self._settings, self._metrics = settings, metrics
        self._max_horizon_us = max_horizon_us

    def identify(self, video_id: object) -> str:
        """The id itself, if it can be one."""
        return parse_identifier("video_id", video_id, self._settings.max_id_length)

    def horizons(self, values: list[Any] | None) -> tuple[int, ...]:
        """Horizons in microseconds, within what the bundle was trained for."""
        return parse_horizons(values, self._max_horizon_us, self._settings.max_horizons)

    async def register(
        self, video_id: str, metadata: dict[str, Any], client: str = ""
    ) -> tuple[AppliedRows, list[str]]:
        """Register a video, or replace its metadata; also the names of fields that are not used.

        ``client`` is the name of the API key that does so, here and below; "" without one.
        """
        form = parse_form(VideoBody, metadata)
        applied = await self._store.register(video_id, self._registration(form, client))
        self._count_unparked(applied)
        return applied, form.unused()

    async def get(self, video_id: str) -> tuple[Snapshot, bool]:
        """The video, and whether it is stale."""
        snapshot, stale = await self._histories.get(video_id)
        if snapshot is None:
            raise NotFound("this video is not registered", field="video_id", value=video_id)
        return snapshot, stale

    async def delete(self, video_id: str) -> None:
        """Forget everything about a video; as a neighbour of others first, so that a failure there can be tried again."""
        try:
            gone = await self._forgetting.delete(video_id)
        except BankError:
            raise Unavailable("the bank does not answer, and may know this video", part="bank") from None
        if not gone:
            raise NotFound("nothing is known about this video", field="video_id", value=video_id)

    async def correct(self, video_id: str, body: object) -> tuple[Correction, Corrected]:
        """Lower a count that was wrong; logged and counted."""
        form = parse_form(CorrectionBody, body)
        if (form.type is None) == (form.counter is None):
            raise Invalid("type", "missing" if form.type is None else form.type, "either type or counter, and not both")
        kind = form.type if form.counter is None else self._catalog.columns.get(form.counter)
        if kind is None or kind not in self._catalog.types:
            if form.counter is None:
                raise Invalid("type", form.type, f"one of {self._catalog.types_text}")
            raise Invalid("counter", form.counter, f"one of {self._catalog.columns_text}")
        if form.value >= form.replaces:
            raise Invalid("value", form.value, f"less than replaces ({form.replaces}); rows raise a count")
        correction = Correction(kind, form.value, form.replaces, form.from_)
        done = await self._store.correct(video_id, correction)
        self._metrics.count_corrections.inc()
        log.warning(
            "a count was corrected",
            video=video_digest(video_id),
            type=kind,
            replaced=form.replaces,
            value=form.value,
            total=done.total,
        )
        return correction, done

    async def forecast(self, video_id: str, at_us: int | None, horizons_us: tuple[int, ...]) -> Answer:
        """The forecast of a registered video."""
        if at_us is not None:
            self._parser.check_future("at", at_us)
        return await self._engine.forecast(video_id, at_us, horizons_us)

    async def parse_prediction(self, body: object, client: str = "", request: str | None = None) -> Prediction:
        """Validate all of a prediction; any bad row refuses it whole.

        Events without an id get one made of the ``request``'s key, where it has one.
        """
        form = parse_form(PredictBody, body)
        metadata = dict(form.video)
        video_id = self.identify(metadata.pop("video_id", None))
        horizons_us = self.horizons(form.horizons_s)
        rows: list[InputRow] = []
        ignored: dict[str, int] = {}
        given: tuple[tuple[Mode, list[Any]], ...] = (("events", form.events), ("counters", form.counters))
        for mode, items in given:
            if not items:
                continue
            parsed = await self._ingest.parse(mode, items, video_id, client=client.encode())
            _refuse(parsed.refused)
            rows += (
                [
                    replace(row, id=event_id(request, row.index)) if row.mode == "events" and row.id is None else row
                    for row in parsed.rows
                ]
                if request is not None
                else parsed.rows
            )
            ignored.update(parsed.ignored)
        at_us = None if form.at is None else self._parser.check_future("at", form.at)
        registration = self._registration(parse_form(VideoBody, metadata, "video"), client) if metadata else None
        if registration is not None and at_us is not None and at_us < registration.published_us:
            raise Invalid("at", iso(at_us), f"published_at ({iso(registration.published_us)}) or later")
        return Prediction(video_id, registration, rows, at_us, horizons_us, ignored)

    async def predict(self, prediction: Prediction) -> tuple[Answer, AppliedRows]:
        """Register, store the rows, forecast; also what became of the rows."""
        video_id, applied = prediction.video_id, AppliedRows(Outcome())
        if prediction.registration is not None:
            applied = await self._store.register(video_id, prediction.registration, prediction.rows)
            self._count_unparked(applied)
        elif prediction.rows:
            snapshot, _ = await self._histories.get(video_id)
            if snapshot is None:
                raise _unregistered()
            applied = (await self._store.apply({video_id: prediction.rows}, strict=True))[video_id]
        applied.outcome.ignore(prediction.ignored)
        self._ingest.count("predict", applied.outcome)
        _refuse(applied.outcome.rejections)
        try:
            return await self._engine.forecast(video_id, prediction.at_us, prediction.horizons_us), applied
        except NotFound:
            raise _unregistered() from None

    async def predict_all(
        self, bodies: Sequence[object], check_write: Callable[[], None], client: str = "", request: str | None = None
    ) -> list[tuple[Answer, AppliedRows] | Problem]:
        """Each prediction's answer or problem, in order; a bad one stores nothing of its own and disturbs no other.

        Those of one video follow each other in their order; ``check_write`` raises for who may only read.
        """
        if not 1 <= len(bodies) <= self._settings.max_batch_predictions:
            allowed = f"1 to {self._settings.max_batch_predictions} predictions in one request"
            raise Invalid("body", f"{len(bodies)} predictions", allowed)
        results: dict[int, tuple[Answer, AppliedRows] | Problem] = {}
        by_video: dict[str, list[tuple[int, Prediction]]] = {}
        for index, body in enumerate(bodies):
            await asyncio.sleep(0)
            try:
                own = None if request is None else f"{request} {index}"
                prediction = await self.parse_prediction(body, client, own)
                if prediction.writes:
                    check_write()
                by_video.setdefault(prediction.video_id, []).append((index, prediction))
            except Problem as problem:
                results[index] = problem
        places = asyncio.Semaphore(self._settings.batch_forecasts)

        async def answer(predictions: list[tuple[int, Prediction]]) -> None:
            for index, prediction in predictions:
                async with places:
                    try:
                        results[index] = await self.predict(prediction)
                    except Problem as problem:
                        results[index] = problem
                    except Exception:
                        log.exception("a prediction failed")
                        results[index] = Internal("the service failed; its log has the reason")

        await asyncio.gather(*map(answer, by_video.values()))
        return [results[index] for index in range(len(bodies))]

    def _registration(self, form: VideoBody, client: str) -> Registration:
        registration = form.registration(client)
        self._parser.check_future("published_at", registration.published_us)
        return registration

    def _count_unparked(self, applied: AppliedRows) -> None:
        self._metrics.unparked.labels("applied").inc(applied.parked_applied)
        self._metrics.unparked.labels("rejected").inc(applied.parked_rejected)


def _unregistered() -> Invalid:
    return Invalid("published_at", "missing", "the publication time: this video is not registered yet")


def _refuse(refused: list[Rejection]) -> None:
    for first in refused[:1]:
        if first.reason == "damaged":
            raise DamagedRecord(first.value, "its rows could not be taken")
        field = f"{first.mode}[{first.index}].{first.field}"
        raise Invalid(field, first.value, first.allowed, reason=first.reason, rejected=len(refused))

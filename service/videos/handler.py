"""Registers, reads, corrects and deletes videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from model.errors import BankError
from model.features.attributes import Attribute
from service.forgetting.forgetting import Forgetting
from service.http.audit import video_digest
from service.ingest.accepted_types import AcceptedTypes
from service.ingest.row_parser import RowParser, parse_identifier
from service.metrics import Metrics
from service.problems import Invalid, NotFound, Unavailable
from service.store.correction import Correction
from service.store.replies import Corrected
from service.store.rows.row import InputRow
from service.store.snapshot import Snapshot
from service.store.snapshot_cache import SnapshotCache
from service.store.store import AppliedRows, Registration, Store
from service.videos.forms import parse_form
from service.videos.metadata import MetadataBody, VideoBody, check_kinds
from service.videos.request_bodies import CorrectionBody

log = structlog.get_logger(__name__)


class VideoHandler:
    """Handles requests to /videos.

    ``client`` is the name of the API key that a request came with, or "" without a key. ``declared`` returns the
    attributes that the active bundle reads.
    """

    def __init__(
        self,
        store: Store,
        snapshots: SnapshotCache,
        forgetting: Forgetting,
        parser: RowParser,
        accepted_types: AcceptedTypes,
        metrics: Metrics,
        *,
        max_id_length: int,
        declared: Callable[[], Sequence[Attribute]] = tuple,
    ) -> None:
        self._store, self._snapshots, self._forgetting = store, snapshots, forgetting
        self._parser, self._types, self._metrics = parser, accepted_types, metrics
        self._max_id_length, self._declared = max_id_length, declared

    def identify(self, video_id: object) -> str:
        """Return a valid id unchanged. Raise Invalid if the id is not valid."""
        return parse_identifier("video_id", video_id, self._max_id_length)

    def parse_metadata(self, metadata: dict[str, Any], field: str = "body") -> MetadataBody:
        """Validate a video's metadata. Raises Invalid if the active bundle cannot read an attribute that it declares."""
        form = parse_form(VideoBody, metadata, field)
        check_kinds(form.given_attributes(), self._declared())
        return form

    def registration(self, metadata: MetadataBody, client: str) -> Registration:
        """Return the data that the store keeps for valid metadata. Raises Invalid if the publication time is in the future."""
        registration = metadata.registration(client)
        self._parser.check_future("published_at", registration.published_us)
        return registration

    async def register(
        self, video_id: str, metadata: dict[str, Any], client: str = ""
    ) -> tuple[AppliedRows, list[str]]:
        """Register a video, or replace its metadata. Return the outcome of the parked rows, and the names of unused fields."""
        form = self.parse_metadata(metadata)
        return await self.store_registration(video_id, self.registration(form, client)), form.unused()

    async def store_registration(
        self, video_id: str, registration: Registration, rows: Sequence[InputRow] = ()
    ) -> AppliedRows:
        """Register a video, then apply its parked rows, and then ``rows``."""
        applied = await self._store.register(video_id, registration, rows)
        self._metrics.unparked.labels("applied").inc(applied.parked_applied)
        self._metrics.unparked.labels("rejected").inc(applied.parked_rejected)
        return applied

    async def get(self, video_id: str) -> tuple[Snapshot, bool]:
        """Return the video, and whether its data is stale. Raise NotFound if the video is not registered."""
        snapshot, stale = await self._snapshots.get(video_id)
        if snapshot is None:
            raise NotFound("this video is not registered", field="video_id", value=video_id)
        return snapshot, stale

    async def delete(self, video_id: str) -> None:
        """Delete everything about a video.

        The video is removed from the bank before it is removed from the store. If the bank fails, the request can therefore be repeated.
        """
        try:
            existed = await self._forgetting.delete(video_id)
        except BankError:
            raise Unavailable("the bank does not answer, and may still hold this video", part="bank") from None
        if not existed:
            raise NotFound("nothing is known about this video", field="video_id", value=video_id)

    async def correct(self, video_id: str, body: object) -> tuple[Correction, Corrected]:
        """Lower a count that was wrong. The correction is logged and counted."""
        form = parse_form(CorrectionBody, body)
        if (form.type is None) == (form.counter is None):
            raise Invalid("type", "missing" if form.type is None else form.type, "either type or counter, and not both")
        kind = form.type if form.counter is None else self._types.columns.get(form.counter)
        if kind is None or kind not in self._types.types:
            if form.counter is None:
                raise Invalid("type", form.type, f"one of {self._types.types_text}")
            raise Invalid("counter", form.counter, f"one of {self._types.columns_text}")
        if form.value >= form.replaces:
            raise Invalid("value", form.value, f"less than replaces ({form.replaces}); to raise a count, send rows")
        correction = Correction(kind, form.value, form.replaces, form.from_)
        corrected = await self._store.correct(video_id, correction)
        self._metrics.count_corrections.inc()
        log.warning(
            "a count was corrected",
            video=video_digest(video_id),
            type=kind,
            replaced=form.replaces,
            value=form.value,
            total=corrected.total,
        )
        return correction, corrected

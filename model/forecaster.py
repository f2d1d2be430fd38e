"""Computes forecasts from videos and their histories. The service and the builder both use this module."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from model.bank import Bank, BankQuery, EmbeddedBank, PastVideo
from model.bank.neighbours import CANDIDATES, Ranked, rank
from model.bundle import BANK, Bundle, Manifest, load_bundle
from model.content.text import ENCODER_ID, SentenceEncoder
from model.content_reader import ContentReader
from model.engagement.bins import SECOND_US
from model.engagement.cells import cells_of
from model.engagement.video import Video
from model.errors import BankError, BundleError, DataError
from model.features.shape import shape_bucket, shapes
from model.features.tokens import Tokens, tokenize
from model.features.trajectory import TrajectorySpace
from model.forecast import Forecast, Request
from model.metrics.known import Known
from model.metrics.metric_model import MetricModel
from model.mhp.backends.select import choose_backend
from model.mhp.state_pool import StatePool

if TYPE_CHECKING:
    from collections.abc import Iterator

_BATCH: Final = 256
"""Maximum number of requests that are computed together."""


def check_request(manifest: Manifest, request: Request) -> None:
    """Raise DataError if no forecast can be made for the request.

    Raises:
        DataError: ``now`` is before publication, a horizon is outside (0, max_horizon_us], or the bundle does not
            forecast a metric.
    """
    for metric in request.metrics:
        if metric not in manifest.metrics:
            raise DataError(f"metrics: {metric!r}; allowed: {', '.join(manifest.metrics)}")
    if request.now_us < request.video.published_us:
        raise DataError(
            f"now: {request.now_us} is before published_at {request.video.published_us}; allowed: later times"
        )
    for horizon in request.horizons_us:
        if not 0 < horizon <= manifest.max_horizon_us:
            raise DataError(
                f"horizon_s: {horizon / SECOND_US:g}; allowed: above 0 and at most "
                f"{manifest.max_horizon_us // SECOND_US}, the trained maximum"
            )


class Forecaster:
    """Makes forecasts with a loaded bundle. A forecaster is thread-safe, and it computes one batch at a time."""

    def __init__(
        self,
        bundle: Bundle,
        bank: Bank,
        *,
        device: str = "auto",
        encoder_workers: int = 2,
        encoder: SentenceEncoder | None = None,
    ) -> None:
        """Prepare the bundle for forecasting. Pass ``encoder`` to share the text encoder of another forecaster."""
        self.manifest = bundle.manifest
        self.bank = bank
        self.backend = choose_backend(device, bundle.manifest.shape, bundle.weights)
        if bundle.manifest.encoder != ENCODER_ID:
            raise BundleError(f"{bundle.path}: encoder {bundle.manifest.encoder!r}; installed: {ENCODER_ID!r}")
        self._space = TrajectorySpace.of(bundle.weights)
        self.encoder = encoder or SentenceEncoder(encoder_workers)
        self._type_index = {kind: i for i, kind in enumerate(self.manifest.types)}
        self.metrics = {metric: MetricModel(bundle, metric) for metric in self.manifest.metrics}
        first = self.metrics[self.manifest.metric]
        self._shape_types = first.types
        projection = None if first.trees is None else first.trees.reader.projection
        self._contents = ContentReader(bundle, self.encoder, projection)
        self._no_pool = StatePool(self.backend, 0)
        self._lock = Lock()

    @classmethod
    def load(cls, bundle: Path, *, bank: Bank | None = None, device: str = "auto") -> Forecaster:
        """Load and verify a bundle. Without ``bank``, the embedded bank of the bundle is opened.

        Raises:
            BundleError: the bundle is damaged or has a different format.
            BankError: the bundle's bank cannot be opened.
        """
        loaded = load_bundle(bundle)
        if bank is None:
            bank = EmbeddedBank.open(bundle / BANK, *loaded.dims)
        return cls(loaded, bank, device=device)

    def close(self) -> None:
        """Release the bank."""
        self.bank.close()

    def adapt(
        self,
        factors: NDArray[np.float64] | None,
        by_client: Mapping[str, NDArray[np.float64]] | None = None,
        metric: str | None = None,
    ) -> None:
        """Stretch intervals by ``factors`` (N_ROWS, N_COLUMNS, N_STEPS) in addition to the bundle's calibration.

        If ``factors`` is None, an earlier stretch is removed. ``by_client`` maps a client to its own factors. For
        this client's videos, its own factors are used instead of ``factors``. ``metric`` is the metric whose intervals
        are stretched. Without it, those of the bundle's first metric are.
        """
        self.metrics[metric or self.manifest.metric].adapt(factors, by_client or {})

    def new_pool(self, capacity: int) -> StatePool:
        """Return a new cache of states for this model. The cache holds up to ``capacity`` videos."""
        return StatePool(self.backend, capacity)

    def forecast(
        self,
        requests: Sequence[Request],
        *,
        pool: StatePool | None = None,
        stage: Callable[[str, float], None] | None = None,
        explain: bool = True,
    ) -> list[Forecast]:
        """Forecast the first metric of every request. Return the forecasts in the order of the requests.

        ``forecast_metrics`` explains the arguments.
        """
        answers = self.forecast_metrics(requests, pool=pool, stage=stage, explain=explain)
        return [next(iter(answer.values())) for answer in answers]

    def forecast_metrics(
        self,
        requests: Sequence[Request],
        *,
        pool: StatePool | None = None,
        stage: Callable[[str, float], None] | None = None,
        explain: bool = True,
    ) -> list[dict[str, Forecast]]:
        """Forecast every metric of every request.

        All metrics of a request share one state, one content vector and one search for neighbours.

        Args:
            requests: any number of requests.
            pool: cached states of earlier calls, by video_id. Without a pool, every state is recomputed.
            stage: called with (name, seconds) after each of the stages "content", "state", "bank" and "head".
            explain: whether forecasts list their neighbours.

        Returns:
            For each request, its forecast of each of its metrics, in the order of ``Request.metrics``.

        Raises:
            DataError: no forecast can be made for a request. In this case no request is computed.
        """
        for request in requests:
            check_request(self.manifest, request)
        answers: list[dict[str, Forecast]] = []
        with self._lock:
            for start in range(0, len(requests), _BATCH):
                answers += self._batch(requests[start : start + _BATCH], pool or self._no_pool, stage, explain)
        return answers

    def content(self, videos: Sequence[Video], sentence: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return content vectors, (N, content_dim) float32. The vectors are cached with the video's metadata as the key.

        Pass ``sentence`` (N, 384), the encoded texts of the videos, to avoid encoding the texts again.
        """
        return self._contents.read(videos, sentence).vectors

    def tokens(self, requests: Sequence[Request]) -> Tokens:
        """Return the tokens of every request's history as of the request's ``now``."""
        return tokenize(
            cells_of([r.history for r in requests], self._type_index),
            np.array([r.video.published_us for r in requests], dtype=np.int64),
            np.array([r.now_us for r in requests], dtype=np.int64),
            len(self.manifest.types),
        )

    def trajectory(self, tokens: Tokens, sequence: NDArray[np.int64], bucket: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the trajectory vectors (N, P) of N pairs of a token sequence and a nominal age; see ``model.features.trajectory``.

        A vector is zero if the shape cannot be read, or if the bundle does not search by trajectory.
        """
        if not self.manifest.parts.by_trajectory:
            return np.zeros((len(sequence), self._space.dim), np.float32)
        return self._space.vectors(shapes(tokens, sequence, bucket, self._shape_types), bucket)

    def _batch(
        self, requests: Sequence[Request], pool: StatePool, stage: Callable[[str, float], None] | None, explain: bool
    ) -> list[dict[str, Forecast]]:
        with _timed("content", stage):
            content, components = self._contents.read([r.video for r in requests])
        with _timed("state", stage):
            tokens = self.tokens(requests)
            _, hidden = pool.read([r.video.video_id for r in requests], tokens)
        with _timed("bank", stage):
            ranked, past, degraded = self._neighbours(requests, content, tokens)
        known = Known(requests, tokens, hidden, content, components, ranked, past, degraded)
        asked = [r.metrics or self.manifest.metrics[:1] for r in requests]
        made: list[dict[str, Forecast]] = [{} for _ in requests]
        with _timed("head", stage):
            for metric, model in self.metrics.items():
                if rows := [i for i, metrics in enumerate(asked) if metric in metrics]:
                    for i, forecast in zip(rows, model.forecast(known.take(rows), explained=explain), strict=True):
                        made[i][metric] = forecast
        return [{metric: found[metric] for metric in metrics} for metrics, found in zip(asked, made, strict=True)]

    def _neighbours(
        self,
        requests: Sequence[Request],
        content: NDArray[np.float32],
        tokens: Tokens,
    ) -> tuple[list[list[Ranked]], dict[str, list[PastVideo]], list[str]]:
        """Find the neighbours and the creators' past videos.

        Returns:
            The ranked neighbours of each request, the past videos by creator, and the names of the components that
            failed: ["bank"] or [].
        """
        bucket = shape_bucket(tokens.known_until_s)
        trajectory = self.trajectory(tokens, np.arange(len(requests)), bucket)
        k = self.manifest.neighbours
        queries = [
            BankQuery(content[i], trajectory[i], max(int(bucket[i]), 0), r.now_us, r.video.video_id, CANDIDATES * k)
            for i, r in enumerate(requests)
        ]
        creators = sorted({r.video.creator_id for r in requests if r.video.creator_id})
        try:
            found = self.bank.search(queries) if self.manifest.parts.neighbours else [[] for _ in queries]
            past = self.bank.creator(creators)
        except BankError:
            return [[] for _ in requests], {}, ["bank"]
        weight = self.manifest.content_weight
        published = [r.video.published_us for r in requests]
        return [rank(q, c, weight, k, at) for q, c, at in zip(queries, found, published, strict=True)], past, []


@contextmanager
def _timed(name: str, stage: Callable[[str, float], None] | None) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if stage:
        stage(name, time.perf_counter() - start)

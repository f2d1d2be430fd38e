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
from model.bank.neighbours import Ranked, explain, rank
from model.bundle import BANK, TREES, Bundle, Manifest, load_bundle
from model.cascade import Cascade, followers_of
from model.content.text import ENCODER_ID, SentenceEncoder
from model.content_reader import ContentReader
from model.engagement.bins import SECOND_US
from model.engagement.cells import cells_of
from model.engagement.types import metric_types
from model.engagement.video import Video
from model.errors import BankError, BundleError, DataError
from model.features.shape import centred, shape_bucket, shapes
from model.features.summary import summaries
from model.features.tokens import Tokens, tokenize
from model.forecast import Forecast, Request, ThresholdForecast
from model.growth.curve_kernels import growth_horizons_us
from model.head_inputs import HeadInputs
from model.mhp.backends.select import choose_backend
from model.mhp.state_pool import StatePool
from model.onnx_graph import Graph
from model.quantiles.calibration import Calibration
from model.quantiles.head import MEDIAN, counts_at, grid_growth, grid_parts, moved, on_grid_at
from model.quantiles.simple_growth import SimpleGrowth
from model.quantiles.support import Support
from model.rates import HOUR_S, RateInputs, Rates, in_next_hour, slope_horizon_s, waves
from model.request_answers import at_horizons, threshold_forecasts
from model.trees import Trees

if TYPE_CHECKING:
    from collections.abc import Iterator

_BATCH: Final = 256
"""Maximum number of requests that are computed together."""


def check_request(manifest: Manifest, request: Request) -> None:
    """Raise DataError if no forecast can be made for the request.

    Raises:
        DataError: ``now`` is before publication, or a horizon is outside (0, max_horizon_us].
    """
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
        self._weights = bundle.weights
        self._cascade: Cascade | None = None
        if "cascade.constants" in bundle.weights:
            self._cascade = Cascade(
                bundle.weights["cascade.constants"].astype(np.float64),
                bundle.weights["cascade.correction"].astype(np.float64),
                self.manifest.max_horizon_us / SECOND_US,
            )
        self._support = Support.of(bundle.weights)
        self._rates = Rates.of(bundle.weights)
        self._bundled = self._calibration = bundle.calibration
        self._by_client: dict[str, Calibration] = {}
        self.encoder = encoder or SentenceEncoder(encoder_workers)
        self._head = Graph(bundle.path / "head.onnx")
        self._type_index = {kind: i for i, kind in enumerate(self.manifest.types)}
        self._metric = metric_types(self.manifest.metric, self.manifest.types)
        growth_us = growth_horizons_us(self.manifest.max_horizon_us)
        self._inputs = HeadInputs(self.manifest.schema, self.manifest.neighbours, growth_us, bundle.weights["pace"])
        self._trees = Trees.of(bundle.path / TREES, bundle.weights)
        self._simple = SimpleGrowth.of(bundle.weights)
        projection = None if self._trees is None else self._trees.projection
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
        self, factors: NDArray[np.float64] | None, by_client: Mapping[str, NDArray[np.float64]] | None = None
    ) -> None:
        """Stretch intervals by ``factors`` (N_ROWS, N_COLUMNS, N_STEPS) in addition to the bundle's calibration.

        If ``factors`` is None, an earlier stretch is removed. ``by_client`` maps a client to its own factors. For
        this client's videos, its own factors are used instead of ``factors``.
        """
        self._calibration = self._bundled if factors is None else self._bundled.times(factors)
        self._by_client = {name: self._bundled.times(own) for name, own in (by_client or {}).items()}

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
        """Forecast every request. Return the forecasts in the order of the requests.

        Args:
            requests: any number of requests.
            pool: cached states of earlier calls, by video_id. Without a pool, every state is recomputed.
            stage: called with (name, seconds) after each of the stages "content", "state", "bank" and "head".
            explain: whether forecasts list their neighbours.

        Raises:
            DataError: no forecast can be made for a request. In this case no request is computed.
        """
        for request in requests:
            check_request(self.manifest, request)
        forecasts: list[Forecast] = []
        with self._lock:
            for start in range(0, len(requests), _BATCH):
                forecasts += self._batch(requests[start : start + _BATCH], pool or self._no_pool, stage, explain)
        return forecasts

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
        """Return the trajectory vectors (N, D) of N pairs of a token sequence and a nominal age; see ``model.features.shape``.

        A vector is zero if the shape cannot be read, or if the bundle does not search by trajectory.
        """
        centre = self._weights["trajectory_centre"]
        if not self.manifest.parts.by_trajectory:
            return np.zeros((len(sequence), centre.shape[1]), np.float32)
        return centred(shapes(tokens, sequence, bucket, self._metric), bucket, centre)

    def _batch(
        self, requests: Sequence[Request], pool: StatePool, stage: Callable[[str, float], None] | None, explain: bool
    ) -> list[Forecast]:
        with _timed("content", stage):
            content, components = self._contents.read([r.video for r in requests])
        with _timed("state", stage):
            tokens = self.tokens(requests)
            _, hidden = pool.read([r.video.video_id for r in requests], tokens)
        ages_us = np.array([r.now_us - r.video.published_us for r in requests], dtype=np.int64)
        values = tokens.totals[:, list(self._metric)].sum(1)
        cold = tokens.cold
        with _timed("bank", stage):
            ranked, past, degraded = self._neighbours(requests, content, tokens)
        with _timed("head", stage):
            age_s = ages_us / SECOND_US
            summary = summaries(tokens, age_s, self._metric)
            extrapolated = self._extrapolated(requests, age_s, summary, cold)
            expected, cascade_features = self._expected(requests, tokens, age_s, values)
            summary = np.concatenate([self._support.within(age_s, summary, cold), cascade_features], axis=1)
            inputs = self._inputs.build(requests, tokens, hidden, content, summary, ages_us, values, ranked, past)
            coefficients = self._head(inputs)
            max_horizon_s = self.manifest.max_horizon_us / SECOND_US
            stretch = self._stretch([r.client for r in requests], age_s, cold)
            centre, steps = grid_parts(coefficients, age_s, max_horizon_s, expected)
            if self._trees is not None:
                now_s = np.array([r.now_us for r in requests]) / SECOND_US
                centre = self._trees.blend(centre, inputs, components, age_s, now_s, cold, max_horizon_s)
            if self._simple is not None:
                centre = self._simple.blend(centre, values, age_s, cold, max_horizon_s)
            centre = moved(centre, steps, self._bundled.shift_on_grid(age_s, cold, max_horizon_s))
            growth, far = grid_growth(centre, steps, stretch), np.array([bool(names) for names in extrapolated])
            growth = self._support.bound(growth, age_s, values, far, max_horizon_s)
            rates = self._next_hour(requests, growth, age_s, cold, values, tokens.totals)
            asked = at_horizons(requests, growth, max_horizon_s)
        return [
            self._forecast_of(
                r,
                tokens.totals[i],
                values[i],
                asked[i],
                threshold_forecasts(r, float(values[i]), growth[i], max_horizon_s),
                rates[i],
                ranked[i] if explain else [],
                bool(cold[i]),
                degraded,
                extrapolated[i],
                float(age_s[i] - tokens.last_end_s[i]),
            )
            for i, r in enumerate(requests)
        ]

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
            BankQuery(content[i], trajectory[i], max(int(bucket[i]), 0), r.now_us, r.video.video_id, k)
            for i, r in enumerate(requests)
        ]
        creators = sorted({r.video.creator_id for r in requests if r.video.creator_id})
        try:
            found = self.bank.search(queries) if self.manifest.parts.neighbours else [[] for _ in queries]
            past = self.bank.creator(creators)
        except BankError:
            return [[] for _ in requests], {}, ["bank"]
        weight = self.manifest.content_weight
        return [rank(q, c, weight, k) for q, c in zip(queries, found, strict=True)], past, []

    def _stretch(
        self, clients: Sequence[str], age_s: NDArray[np.float64], cold: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return the stretch of the requests' quantiles on the grid, (N, N_GRID + 1, N_STEPS). Each client may have its own."""
        max_horizon_s, by_client = self.manifest.max_horizon_us / SECOND_US, self._by_client
        first, *others = dict.fromkeys(clients)
        stretch = by_client.get(first, self._calibration).on_grid(age_s, cold, max_horizon_s)
        for client in others:
            own = np.array([name == client for name in clients])
            stretch[own] = by_client.get(client, self._calibration).on_grid(age_s[own], cold[own], max_horizon_s)
        return stretch

    def _extrapolated(
        self,
        requests: Sequence[Request],
        age_s: NDArray[np.float64],
        summary: NDArray[np.float32],
        cold: NDArray[np.bool_],
    ) -> list[list[str]]:
        """Return, for each request, the names of its properties outside the training range; see ``Support.extrapolated``."""
        observed = [{kind: s.mode for kind, s in r.history.series.items() if len(s.bins)} for r in requests]
        return self._support.extrapolated(self.manifest.types, observed, age_s, summary, cold)

    def _expected(
        self, requests: Sequence[Request], tokens: Tokens, age_s: NDArray[np.float64], values: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32] | float, NDArray[np.float32]]:
        """Return the growth that a cascade expects for each request on the head's grid, and the cascade features for the head.

        The growth is at most the largest growth seen in training. Without a cascade, the growth is 0 and there are no
        features.
        """
        if self._cascade is None:
            return 0.0, np.zeros((len(requests), 0), np.float32)
        videos = [r.video for r in requests]
        published_s = np.array([v.published_us for v in videos], dtype=np.float64) / SECOND_US
        growth, process = self._cascade.growth(tokens, age_s, self._metric, followers_of(videos), published_s)
        growth = np.minimum(growth, self._support.largest(age_s, values))
        return growth, self._cascade.features(growth, process)

    def _next_hour(
        self,
        requests: Sequence[Request],
        growth: NDArray[np.float64],
        age_s: NDArray[np.float64],
        cold: NDArray[np.bool_],
        values: NDArray[np.float64],
        totals: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return the expected engagements of each type in the next hour, (N, K)."""
        max_horizon_s = self.manifest.max_horizon_us / SECOND_US
        horizon_s = slope_horizon_s(age_s, max_horizon_s)
        spans_s = np.stack([horizon_s, np.full(len(values), min(HOUR_S, max_horizon_s))], axis=1)
        medians = on_grid_at(np.ascontiguousarray(growth[..., 1 + MEDIAN]), spans_s, max_horizon_s)
        increments = (1 + values)[:, None] * np.expm1(np.log(2) * medians)
        slope, median = in_next_hour(increments, age_s[:, None], spans_s).T
        now_s = np.array([r.now_us for r in requests], dtype=np.float64) / SECOND_US
        return self._rates.expected(
            RateInputs(age_s, cold, slope, median, waves(now_s, age_s, HOUR_S, horizon_s), values, totals)
        )

    def _forecast_of(
        self,
        request: Request,
        totals: NDArray[np.float64],
        value_now: float,
        growth: NDArray[np.float64],
        thresholds: list[ThresholdForecast],
        rates: NDArray[np.float64],
        ranked: list[Ranked],
        cold: bool,
        degraded: list[str],
        extrapolated: list[str],
        state_age_s: float,
    ) -> Forecast:
        counts = counts_at(float(value_now), growth)
        observed = request.history.series
        age_us = request.now_us - request.video.published_us
        return Forecast(
            request.now_us,
            self.manifest.metric,
            float(value_now),
            {kind: round(totals[i]) for kind, i in self._type_index.items() if kind in observed},
            request.horizons_us,
            counts[:, 1:],
            counts[:, 0],
            {kind: float(rates[i]) for kind, i in self._type_index.items()},
            [explain(item, age_us, request.horizons_us) for item in ranked],
            cold,
            list(degraded),
            max(state_age_s, 0.0),
            extrapolated,
            thresholds,
        )


@contextmanager
def _timed(name: str, stage: Callable[[str, float], None] | None) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if stage:
        stage(name, time.perf_counter() - start)

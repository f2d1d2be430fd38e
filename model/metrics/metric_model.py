"""The part of a model that belongs to one metric: head, trees, cascade, calibration, training range and rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from model.bank.neighbours import explain
from model.bundle import HEAD, TREES, Bundle
from model.cascade import Cascade, followers_of
from model.engagement.bins import SECOND_US
from model.engagement.types import metric_types
from model.features.summary import summaries
from model.forecast import Forecast, Request
from model.growth.curve_kernels import growth_horizons_us
from model.head_inputs import HeadInputs
from model.metrics.known import Known
from model.metrics.request_answers import at_horizons, threshold_forecasts
from model.onnx_graph import Graph
from model.quantiles.calibration import Calibration
from model.quantiles.head import counts_at, grid_growth, grid_parts, moved, on_grid_at
from model.quantiles.simple_growth import SimpleGrowth
from model.quantiles.support import Support
from model.rates import HOUR_S, RateInputs, Rates, in_next_hour, slope_horizon_s, waves
from model.trees import Trees


class MetricModel:
    """Forecasts one metric of a bundle."""

    def __init__(self, bundle: Bundle, metric: str) -> None:
        manifest, part = bundle.manifest, bundle.of(metric)
        self.metric = metric
        self._schema = manifest.schema
        self._further = None if metric == manifest.metric else metric
        self._max_horizon_s = manifest.max_horizon_us / SECOND_US
        self.types = metric_types(metric, manifest.types)
        self.cascade: Cascade | None = None
        if "cascade.constants" in part.weights:
            self.cascade = Cascade(
                part.weights["cascade.constants"].astype(np.float64),
                part.weights["cascade.correction"].astype(np.float64),
                self._max_horizon_s,
            )
        self.support = Support.of(part.weights)
        self._rates = Rates.of(part.weights)
        self._bundled = self._calibration = part.calibration
        self._by_client: dict[str, Calibration] = {}
        self.head = Graph(part.path / HEAD)
        growth_us = growth_horizons_us(manifest.max_horizon_us)
        pace, base = part.weights["pace"], part.weights["base_growth"].astype(np.float64)
        self.inputs = HeadInputs(manifest.schema, manifest.neighbours, growth_us, pace, base, self._further)
        self._simple = SimpleGrowth.of(part.weights)
        self.trees = Trees.of(part.path / TREES, part.weights, manifest.schema, manifest.parts.content)

    def adapt(self, factors: NDArray[np.float64] | None, by_client: Mapping[str, NDArray[np.float64]]) -> None:
        """Stretch intervals as ``Forecaster.adapt`` says."""
        self._calibration = self._bundled if factors is None else self._bundled.times(factors)
        self._by_client = {name: self._bundled.times(own) for name, own in by_client.items()}

    def forecast(self, known: Known, *, explained: bool) -> list[Forecast]:
        """Forecast the metric of every request. ``explained`` says whether forecasts list their neighbours."""
        requests, tokens = known.requests, known.tokens
        ages_us, max_horizon_s = known.ages_us, self._max_horizon_s
        age_s, cold = ages_us / SECOND_US, tokens.cold
        values = tokens.totals[:, list(self.types)].sum(1)
        summary = summaries(tokens, age_s, self.types)
        extrapolated = self._extrapolated(requests, age_s, summary, cold)
        expected, cascade_features = self._expected(known, age_s, values)
        summary = np.concatenate([self.support.within(age_s, summary, cold), cascade_features], axis=1)
        inputs = self.inputs.build(
            requests, tokens, known.hidden, known.content, summary, ages_us, values, known.ranked, known.past
        )
        centre, steps = grid_parts(self.head(inputs), age_s, max_horizon_s, expected)
        if self.trees is not None:
            centre = self.trees.blend(centre, inputs, known.components, age_s, known.now_s, cold)
        if self._simple is not None:
            centre = self._simple.blend(centre, values, age_s, cold, max_horizon_s)
        centre = moved(centre, steps, self._bundled.shift_on_grid(age_s, cold, max_horizon_s))
        stretch = self._stretch([r.client for r in requests], age_s, cold)
        growth, far = grid_growth(centre, steps, stretch), np.array([bool(names) for names in extrapolated])
        growth = self.support.bound(growth, age_s, values, far, max_horizon_s)
        rates = self._next_hour(known, growth, age_s, values)
        asked = at_horizons(requests, growth, max_horizon_s)
        shown = range(len(self._schema.types)) if self._further is None else self.types
        forecasts = []
        for i, request in enumerate(requests):
            value_now = float(values[i])
            counts = counts_at(value_now, asked[i])
            ranked = known.ranked[i] if explained else []
            observed = request.history.series
            forecasts.append(
                Forecast(
                    request.now_us,
                    self.metric,
                    value_now,
                    {kind: round(tokens.totals[i, k]) for k, kind in enumerate(self._schema.types) if kind in observed},
                    request.horizons_us,
                    counts[:, 1:],
                    counts[:, 0],
                    {self._schema.types[k]: float(rates[i, k]) for k in shown},
                    [explain(item, int(ages_us[i]), request.horizons_us, self._further) for item in ranked],
                    bool(cold[i]),
                    list(known.degraded),
                    max(float(age_s[i] - tokens.last_end_s[i]), 0.0),
                    extrapolated[i],
                    threshold_forecasts(request, value_now, growth[i], max_horizon_s),
                )
            )
        return forecasts

    def _stretch(
        self, clients: Sequence[str], age_s: NDArray[np.float64], cold: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return the stretch of the requests' quantiles on the grid, (N, N_GRID + 1, N_STEPS). Each client may have its own."""
        max_horizon_s, by_client = self._max_horizon_s, self._by_client
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
        return self.support.extrapolated(self._schema.types, observed, age_s, summary, cold)

    def _expected(
        self, known: Known, age_s: NDArray[np.float64], values: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32] | float, NDArray[np.float32]]:
        """Return the growth that a cascade expects for each request on the head's grid, and the cascade features for the head.

        The growth is at most the largest growth seen in training. Without a cascade, the growth is 0 and there are no
        features.
        """
        if self.cascade is None:
            return 0.0, np.zeros((len(known.requests), 0), np.float32)
        videos = [r.video for r in known.requests]
        published_s = np.array([v.published_us for v in videos], dtype=np.float64) / SECOND_US
        growth, process = self.cascade.growth(known.tokens, age_s, self.types, followers_of(videos), published_s)
        growth = np.minimum(growth, self.support.largest(age_s, values))
        return growth, self.cascade.features(growth, process)

    def _next_hour(
        self,
        known: Known,
        growth: NDArray[np.float64],
        age_s: NDArray[np.float64],
        values: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return the expected engagements of each type in the next hour, (N, K)."""
        max_horizon_s = self._max_horizon_s
        horizon_s = slope_horizon_s(age_s, max_horizon_s)
        spans_s = np.stack([horizon_s, np.full(len(values), min(HOUR_S, max_horizon_s))], axis=1)
        means = on_grid_at(np.ascontiguousarray(growth[..., 0]), spans_s, max_horizon_s)
        increments = (1 + values)[:, None] * np.expm1(np.log(2) * means)
        slope, mean = in_next_hour(increments, age_s[:, None], spans_s).T
        wave = waves(known.now_s, age_s, HOUR_S, horizon_s)
        return self._rates.expected(
            RateInputs(age_s, known.tokens.cold, slope, mean, wave, values, known.tokens.totals)
        )

"""Metrics for Prometheus, in base units such as seconds.

Every label has a bounded set of values. A video id is never a label value. The largest finite bucket bound of a duration histogram is the
deadline of the measured call. Calls that exceed the deadline are therefore counted only in the bucket ``+Inf``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call]

_FRACTIONS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def buckets(deadline_s: float) -> list[float]:
    """Return the upper bounds of histogram buckets in seconds. The last bound is the deadline."""
    return [fraction * deadline_s for fraction in _FRACTIONS]


class Metrics:
    """All metrics of one service. Several services in one Python process have separate registries."""

    def __init__(self, *, request_deadline_s: float, store_deadline_s: float, bank_deadline_s: float) -> None:
        self.registry = CollectorRegistry()
        r, request, store = self.registry, buckets(request_deadline_s), buckets(store_deadline_s)
        self.requests = Counter(
            "m3tr_requests", "HTTP requests, by route template", ["route", "method", "status"], registry=r
        )
        self.shed = Counter(
            "m3tr_shed_requests",
            "Requests refused before reading: limit and queue are full (full), waited too long (late), client is over its share (share)",
            ["kind", "reason"],
            registry=r,
        )
        self.request_seconds = Histogram(
            "m3tr_request_duration_seconds",
            "Time from request to response",
            ["route", "method"],
            registry=r,
            buckets=request,
        )
        self.rows = Counter("m3tr_ingest_rows", "Rows received, by outcome", ["kind", "outcome"], registry=r)
        self.corrections = Counter("m3tr_ingest_corrections", "Counters that a platform lowered", registry=r)
        self.ignored = Counter(
            "m3tr_ingest_ignored_counters",
            "Counters of accepted rows that were ignored, because the served bundle does not know them",
            registry=r,
        )
        self.frames = Counter(
            "m3tr_stream_frames",
            "WebSocket frames received, by reply: ack, nack or error",
            ["answer"],
            registry=r,
        )
        self.refused_keys = Counter(
            "m3tr_refused_keys",
            "Requests refused because their API key is missing, unknown, or lacks the scope",
            ["reason"],
            registry=r,
        )
        self.task_deaths = Counter(
            "m3tr_task_deaths", "Background tasks that failed and were restarted", ["task"], registry=r
        )
        self.loop_lag = Histogram(
            "m3tr_loop_lag_seconds",
            "How late the event loop's timers fire",
            registry=r,
            buckets=[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2],
        )
        self.videos_ended = Counter("m3tr_videos_ended", "Videos whose record was deleted by retention", registry=r)
        self.count_corrections = Counter(
            "m3tr_count_corrections", "Counts that were lowered by a correction", registry=r
        )
        self.unparked = Counter(
            "m3tr_unparked_rows",
            "Parked rows applied or rejected when their video was registered, by outcome",
            ["outcome"],
            registry=r,
        )
        self.parked_videos = Gauge("m3tr_parked_videos", "Unregistered videos with parked rows", registry=r)
        self.stream_dead = Counter(
            "m3tr_ingest_stream_dead_rows",
            "Rows and entries of the Redis stream that were moved to the dead-letter stream",
            registry=r,
        )
        self.stream_lag = Gauge("m3tr_ingest_stream_lag_entries", "Stream entries not delivered yet", registry=r)
        self.stream_pending = Gauge(
            "m3tr_ingest_stream_pending_entries", "Stream entries delivered but not acknowledged", registry=r
        )
        self.store_seconds = Histogram(
            "m3tr_store_call_duration_seconds", "Duration of event store calls", ["call"], registry=r, buckets=store
        )
        self.store_failures = Counter(
            "m3tr_store_failures", "Event store calls that failed or were late", ["call"], registry=r
        )
        self.store_errors = Counter(
            "m3tr_store_errors",
            "Failures of the event store, by kind (OOM, READONLY, TIMEOUT, ...)",
            ["kind"],
            registry=r,
        )
        self.damaged_records = Counter(
            "m3tr_quarantined_records",
            "Videos whose stored record could not be read, each counted once",
            registry=r,
        )
        self.store_restarts = Counter("m3tr_store_restarts", "Restarts of the embedded event store", registry=r)
        self.forecasts = Counter("m3tr_forecasts", "Forecasts made", ["kind"], registry=r)
        self.degraded = Counter(
            "m3tr_forecasts_degraded", "Forecasts made without a component, by component", ["part"], registry=r
        )
        self.labels = Counter(
            "m3tr_labels",
            "Labels, by outcome. New: kept, known (exists already), full (over the limit), dropped. Later: scored, unlabelled, gone",
            ["outcome"],
            registry=r,
        )
        self.bank_entries = Counter(
            "m3tr_bank_entries", "Videos due for admission to the bank, by outcome", ["outcome"], registry=r
        )
        self.model_seconds = Histogram(
            "m3tr_model_stage_duration_seconds",
            "Duration of each stage of a batch in the model",
            ["stage"],
            registry=r,
            buckets=request,
        )
        self.batches = Counter(
            "m3tr_model_batches", "Batches of forecasts, by the reason why they were released", ["reason"], registry=r
        )
        self.batch_size = Histogram(
            "m3tr_model_batch_forecasts",
            "Number of forecasts in a batch",
            registry=r,
            buckets=[1, 2, 4, 8, 16, 32, 64, 128],
        )
        self.model_switches = Counter(
            "m3tr_model_switches", "Number of times a different model became active", registry=r
        )
        self.model_switch_seconds = Histogram(
            "m3tr_model_switch_duration_seconds",
            "Time from the request to the switch: loading and warm-up",
            registry=r,
            buckets=[0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60],
        )
        self.model_load_failures = Counter("m3tr_model_load_failures", "Models that could not be loaded", registry=r)
        self.model_choice_failures = Counter(
            "m3tr_model_choice_failures", "Number of times the stored model version could not be activated", registry=r
        )
        self.shadow_forecasts = Counter(
            "m3tr_shadow_forecasts",
            "Forecasts for the shadow model: made, dropped (its queue was full) or failed",
            ["outcome"],
            registry=r,
        )
        self.shadow_difference = Histogram(
            "m3tr_shadow_median_log2_ratio",
            "Shadow's median divided by the active model's, in doublings",
            registry=r,
            buckets=[-2, -1, -0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2],
        )
        self.shadow_width = Histogram(
            "m3tr_shadow_width_ratio",
            "Width of the shadow's interval divided by that of the active model, both in doublings",
            registry=r,
            buckets=[0.25, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4],
        )
        self.bank_seconds = Histogram(
            "m3tr_bank_query_duration_seconds", "Duration of bank queries", registry=r, buckets=buckets(bank_deadline_s)
        )
        self.bank_failures = Counter("m3tr_bank_failures", "Bank queries that failed or were late", registry=r)
        self.bank_skipped = Counter(
            "m3tr_bank_skipped", "Bank queries not sent because the circuit breaker was open", registry=r
        )

    def watch(self, collect: Callable[[], Sequence[Metric]]) -> None:
        """Call ``collect`` at each scrape to get further metrics."""
        self.registry.register(_Reader(collect))

    def exposition(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self.registry)


class _Reader(Collector):
    def __init__(self, collect: Callable[[], Sequence[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Sequence[Metric]:
        return self._collect()

    def describe(self) -> Sequence[Metric]:
        return ()


def gauge(name: str, text: str, value: float) -> Metric:
    """Return a gauge with its present value. Call this at each scrape."""
    return GaugeMetricFamily(name, text, value=value)


def counter(name: str, text: str, value: float) -> Metric:
    """Return a counter with its present value. Call this at each scrape."""
    return CounterMetricFamily(name, text, value=value)


def info(name: str, text: str, **labels: str) -> Metric:
    """Return an info metric with its present labels. Call this at each scrape."""
    return InfoMetricFamily(name, text, labels)

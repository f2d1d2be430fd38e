from __future__ import annotations

import os
import shutil

import pytest

from tests import patience
from tests.service.running import T0, Live

EXPECTED = [
    'm3tr_requests_total{method="GET",route="/videos/{video_id}/forecast",status="200"}',
    'm3tr_requests_total{method="GET",route="unmatched",status="404"}',
    'm3tr_requests_total{method="other",route="unmatched",status="404"}',
    'm3tr_requests_total{method="POST",route="/events",status="422"}',
    'm3tr_request_duration_seconds_bucket{le="10.0",method="GET",route="/videos/{video_id}/forecast"}',
    'm3tr_ingest_rows_total{kind="events",outcome="accepted"}',
    'm3tr_ingest_rows_total{kind="events",outcome="duplicate"}',
    'm3tr_ingest_rows_total{kind="events",outcome="parked"}',
    'm3tr_ingest_rows_total{kind="events",outcome="rejected"}',
    'm3tr_unparked_rows_total{outcome="applied"}',
    "m3tr_ingest_corrections_total",
    "m3tr_parked_videos",
    'm3tr_store_call_duration_seconds_bucket{call="apply",le="2.0"}',
    "m3tr_state_cache_hits_total",
    "m3tr_state_cache_misses_total",
    "m3tr_state_cache_evictions_total",
    "m3tr_state_cache_used_slots",
    "m3tr_state_cache_capacity_slots",
    "m3tr_bank_points",
    "m3tr_bank_query_duration_seconds_count",
    "m3tr_bank_failures_total",
    'm3tr_model_stage_duration_seconds_count{stage="head"}',
    'm3tr_forecasts_total{kind="warm"}',
    "m3tr_stream_subscribers 0.0",
    "m3tr_stream_forecasts_total",
    "m3tr_stream_producers 0.0",
    "m3tr_ingest_stream_dead_rows_total",
    "m3tr_ingest_stream_lag_entries",
    "m3tr_ingest_stream_pending_entries",
    'm3tr_build_info{model_version="fa4e"',
]


def exercised(service: Live) -> str:
    service.register("secret-video")
    row = {"video_id": "secret-video", "time": T0, "type": "view", "id": "1"}
    service.post("/events", [row, row, {**row, "video_id": "w"}])
    service.http.post("/events", json=[{**row, "count": -1}])
    service.http.get("/videos/secret-video/forecast")
    service.http.get("/secret-path")
    service.http.request("PROPFIND", "/secret-path")
    return service.http.get("/metrics").text


def test_every_metric_is_present_and_labels_are_bounded(service: Live) -> None:
    text = exercised(service)
    assert [sample for sample in EXPECTED if sample not in text] == []
    assert "secret" not in text and "PROPFIND" not in text


def promtool_complaints(text: str) -> str:
    """The output of ``promtool check metrics``; without promtool the test is skipped, and fails in CI."""
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is missing: apt-get install prometheus")
        pytest.skip("promtool is missing: apt-get install prometheus")
    checked = patience.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, seconds=30)
    return checked.stdout + checked.stderr + (f"status {checked.returncode}" if checked.returncode else "")


def test_promtool_accepts_the_metrics(service: Live) -> None:
    assert promtool_complaints(exercised(service)) == ""

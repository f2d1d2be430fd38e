"""The tests of the store, and of what is built on it, against a cluster of three shards."""

from __future__ import annotations

import os
import sys

import pytest

from tests import patience
from tests.service.running import ROOT

pytestmark = pytest.mark.slow

SUITES = (
    "store/test_store",
    "ingest/test_group_commit",
    "streaming/test_subscriptions",
    "quality/test_scorer",
    "http/test_hostile",
)


def test_the_suites_pass_on_a_cluster() -> None:
    files = [f"tests/service/{name}.py" for name in SUITES]
    done = patience.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env={**os.environ, "M3TR_TEST_STORE": "cluster"},
        capture_output=True,
        text=True,
        seconds=400,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]

"""All kernels are compiled before the service listens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from model.errors import BundleError
from service.models.warmup import warm_first
from service.settings import Settings
from service.wiring import new_metrics
from tests.conftest import Mini
from tests.copies import copy_tree
from tests.service.deployment.test_deployment import deployed
from tests.service.fakes import FakeForecaster
from tests.service.running import ROOT, Process

pytestmark = pytest.mark.slow


def test_first_forecast_is_fast_with_an_empty_kernel_cache(mini: Mini, tmp_path: Path) -> None:
    bundle, root = copy_tree(mini.bundle, tmp_path / "bundle"), tmp_path / "install"
    # With an empty kernel cache.
    for package in ("model", "service"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(root)!r}); from service.cli import main; main()",
    ]
    environment = {"M3TR_BUNDLE": str(bundle), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    (tmp_path / "cache").mkdir()
    early = subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, **environment, "M3TR_PORT": "0", "M3TR_DATA_DIR": str(tmp_path / "early")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert early.stderr is not None
    try:
        # Read until either line: a start that compiles nothing never logs the second.
        line = next(line for line in early.stderr if "ready to forecast" in line or "compiling kernels" in line)
        assert "compiling kernels" in line, "the log says why the start takes long"
        early.send_signal(signal.SIGTERM)
        assert early.wait(15) == 0, "a stop works meanwhile"
    finally:
        early.kill()
        early.stderr.close()

    process = Process(command, tmp_path / "data", **environment)
    try:
        with httpx.Client(base_url=process.url, timeout=30) as http:
            now = time.time()
            assert http.get("/health/ready").status_code == 200
            assert http.put("/videos/v", json={"published_at": now - 7200, "title": "A new one"}).status_code == 200
            rows = [{"video_id": "v", "time": now - 7000 + 50 * i, "type": "view"} for i in range(100)]
            assert http.post("/events", json=rows).status_code == 200
            began = time.monotonic()
            first = http.get("/videos/v/forecast")
            took_s = time.monotonic() - began
            assert first.status_code == 200 and first.json()["value_now"] == 100
            assert took_s < 0.5
            until = time.monotonic() + 3
            while time.monotonic() < until:
                assert http.get("/videos/v/forecast", params={"horizons_s": "3600"}).status_code == 200
        assert process.stop() == 0
    finally:
        process.clean_up()


def test_model_that_cannot_forecast_stops_the_start() -> None:
    class Broken(FakeForecaster):
        def forecast(self, *args: object, **kwargs: object) -> list[object]:  # type: ignore[override]
            raise ValueError("wrong shape")

    settings = Settings(bundle=Path("unused"))
    with pytest.raises(BundleError, match="unused: the model cannot forecast: wrong shape"):
        warm_first(deployed(Broken(), new_metrics(settings)), settings.bundle)

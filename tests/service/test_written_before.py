"""An event store that an earlier version wrote, and its bundle: this version reads the store.

If this version also reads the bundle, it gives the same forecasts. Otherwise it says that the bundle must be trained again, and
forecasts the stored videos with a bundle of its own.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from model.bundle import load_bundle
from model.errors import BundleError
from tests.copies import copy_tree
from tests.service.running import Process
from tests.service.test_real_bundle import COMMAND

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parents[1] / "fixtures"
OF_THE_STORE = ("video_id", "at", "counts", "value_now", "as_of_bins", "stale", "rows")
"""Members of a forecast that do not depend on the bundle."""
CLOSE = 1e-4
"""Allowed relative difference of a number: one machine computes it to the bit, another rounds otherwise."""


@pytest.fixture(scope="module", params=[path.name for path in sorted(FIXTURES.glob("format_*"))])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked files of one earlier version."""
    unpacked = tmp_path_factory.mktemp(request.param)
    for name in ("bundle", "store"):
        with tarfile.open(FIXTURES / request.param / f"{name}.tar.xz") as archive:
            archive.extractall(unpacked, filter="data")
    shutil.copy(FIXTURES / request.param / "expected.json", unpacked)
    return unpacked


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    """What that version answered."""
    answers: dict[str, Any] = json.loads((folder / "expected.json").read_text("utf-8"))
    return answers


@pytest.fixture(scope="module")
def readable(folder: Path) -> bool:
    """Whether this version reads the bundle of that version."""
    try:
        load_bundle(folder / "bundle")
    except BundleError as error:
        assert "must be trained again with m3tr-build train" in str(error)
        return False
    return True


@pytest.fixture(scope="module")
def client(folder: Path, readable: bool, mini_bundle: Path) -> Iterator[httpx.Client]:
    """A client of the real service on those files."""
    bundle = folder / "bundle" if readable else copy_tree(mini_bundle, folder / "own")
    process = Process([*COMMAND, "--bundle", str(bundle)], folder / "store", M3TR_LABELS="0")
    try:
        with httpx.Client(base_url=process.url, timeout=60) as http:
            yield http
    finally:
        process.stop()


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """Where two answers differ; numbers may differ by ``CLOSE``."""
    if isinstance(wanted, dict) and isinstance(found, dict) and wanted.keys() == found.keys():
        return [line for key in wanted for line in differences(found[key], wanted[key], f"{path}.{key}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [
            line
            for i, pair in enumerate(zip(found, wanted, strict=True))
            for line in differences(*pair, f"{path}[{i}]")
        ]
    same = found == pytest.approx(wanted, rel=CLOSE) if isinstance(wanted, float) else found == wanted
    return [] if same else [f"{path}: {found!r} was {wanted!r}"]


def test_records_are_read_as_they_were_written(client: httpx.Client, expected: dict[str, Any]) -> None:
    assert expected["videos"]
    for video_id, answers in expected["videos"].items():
        found = client.get(f"/videos/{quote(video_id, safe='')}").json()
        assert differences(found, answers["record"]) == []


def test_forecasts_are_the_same(client: httpx.Client, expected: dict[str, Any], readable: bool) -> None:
    for video_id, answers in expected["videos"].items():
        for at, wanted in answers["forecasts"].items():
            question = {"video": {"video_id": video_id}, "at": int(at), "horizons_s": expected["horizons_s"]}
            found = client.post("/predict", json=question).json()
            names = wanted if readable else OF_THE_STORE
            assert (
                differences({name: found[name] for name in names}, {name: wanted[name] for name in names}, video_id)
                == []
            )
            assert len(found["forecasts"]) == len(wanted["forecasts"])


def test_rows_are_added_to_records_written_before(client: httpx.Client, expected: dict[str, Any]) -> None:
    record = expected["videos"]["events"]["record"]
    row = {"video_id": "events", "time": expected["published_at"] + 200_000, "type": "view", "count": 5}
    assert client.post("/events", json=[row]).status_code == 200
    assert client.get("/videos/events").json()["counts"]["view"] == record["counts"]["view"] + 5


def test_a_deleted_video_stays_deleted(client: httpx.Client) -> None:
    assert client.get("/videos/deleted").status_code == 404


def test_a_difference_is_found() -> None:
    """The comparison itself can fail."""
    assert differences({"a": [1.0, 2]}, {"a": [1.001, 2]}) == [".a[0]: 1.0 was 1.001"]
    assert differences({"a": 1}, {"b": 1}) != []

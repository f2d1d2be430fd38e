"""Engagement types with reserved names are refused by one rule, in data sets, bundles and the store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.datasets.check import check_dataset
from index_builder.datasets.load import load_dataset
from model.bundle import MANIFEST, load_bundle
from model.engagement.types import RESERVED, check_types, metric_types
from model.errors import BundleError, DataError
from service.settings import Settings
from service.store.functions import connect
from service.store.store import Store
from service.wiring import new_metrics
from tests.copies import copy_tree

RESERVED_NAMES = (*RESERVED, "views")


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_data_sets_bundles_and_the_store_refuse_a_reserved_name(name: str, mini_bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    time = pa.array([1_700_000_000_000_000] * 2, pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"video_id": ["a", "b"], "published_at": time}), data / "videos.parquet")
    events = pa.table({"video_id": ["a", "a"], "time": time, "type": ["view", name]})
    pq.write_table(events, data / "events.parquet")
    errors = [f.problem for f in check_dataset(data) if f.severity == "error"]
    assert len(errors) == 1 and repr(name) in errors[0]
    with pytest.raises(DataError, match=f"type: '{name}'"):
        load_dataset(data)

    bundle = copy_tree(mini_bundle, tmp_path / "bundle")
    body = json.loads((bundle / MANIFEST).read_text("utf-8"))
    body["schema"]["types"] = ["view", name]
    del body["version"]
    body["version"] = hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    (bundle / MANIFEST).write_text(json.dumps(body), "utf-8")
    with pytest.raises(BundleError, match=f"schema.types: type: '{name}'"):
        load_bundle(bundle)

    settings = Settings(bundle=Path("unused"))
    metrics = new_metrics(settings)
    link = connect("redis://127.0.0.1:1", metrics, deadline_s=1, connections=1)
    with pytest.raises(DataError, match=f"type: '{name}'"):
        Store(link, settings, metrics, ("view", name))


def test_other_names_are_accepted() -> None:
    check_types(("view", "like", "gift", "reached", "count", "time", "id"))
    check_types(("views",))
    assert metric_types("views", ("views",)) == (0,)
    assert metric_types("views", ("like", "view")) == (1,)

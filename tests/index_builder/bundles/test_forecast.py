"""One bad video or query does not end a run: it is counted and reported, and the rest is answered as usual."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.bundles.forecast import forecast
from index_builder.datasets.load import load_dataset
from index_builder.evaluation.evaluate import evaluate
from model.engagement.bins import HOUR_US
from model.errors import DataError
from model.quantiles.head import QUANTILES
from tests.conftest import Mini
from tests.copies import copy_tree

pytestmark = pytest.mark.slow

TIME = pa.timestamp("us", tz="UTC")
ASKED = tuple[str | None, str, int | None, int | None]


def asked(path: Path, rows: list[ASKED]) -> Path:
    ids, metrics, now, target = zip(*rows, strict=True)
    columns = {
        "video_id": pa.array(ids, pa.string_view()),
        "metric": pa.array(metrics).dictionary_encode(),
        "now": pa.array(now, TIME),
        "target_time": pa.array(target, TIME),
    }
    pq.write_table(pa.table(columns), path)
    return path


def quantiles(path: Path) -> list[tuple[float | None, ...]]:
    return list(
        zip(
            *pq.read_table(path).select(["mean", *(f"q{level}" for level in QUANTILES)]).to_pydict().values(),
            strict=True,
        )
    )


@pytest.fixture
def bundle(mini: Mini, tmp_path: Path) -> Path:
    return copy_tree(mini.bundle, tmp_path / "bundle")


def test_a_query_that_cannot_be_answered_has_no_numbers(
    mini: Mini, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = load_dataset(mini.data).videos[-40]
    name, now = video.video_id, video.published_us + 5 * HOUR_US
    good: list[ASKED] = [(name, "view", now, now + HOUR_US), (name, "view", now, now + 2 * HOUR_US)]
    odd: list[ASKED] = [
        ("nobody", "view", now, now + HOUR_US),
        (None, "view", now, now + HOUR_US),
        (name, "likes", now, now + HOUR_US),
        (name, "view", video.published_us - 1, now),
        (name, "view", now, now),
        (name, "view", None, now),
        (name, "view", now, -(2**63)),
    ]
    forecast(bundle, mini.data, asked(tmp_path / "good.parquet", good), tmp_path / "expected.parquet")
    capsys.readouterr()
    both = [good[0], *odd, good[1]]
    forecast(bundle, mini.data, asked(tmp_path / "both.parquet", both), tmp_path / "out.parquet")
    found = quantiles(tmp_path / "out.parquet")
    assert [found[0], found[-1]] == quantiles(tmp_path / "expected.parquet")
    assert found[1:-1] == [(None,) * 8] * len(odd)
    printed = capsys.readouterr().err
    assert (
        "both.parquet: 2 queries not answered: video_id is not in the data set's videos.parquet, the first in row 1: 'nobody'"
        in printed
    )
    assert printed.count("1 queries not answered") == 5
    with pytest.raises(DataError, match=r"7 queries|queries not answered: .*; odd\.parquet: "):
        forecast(bundle, mini.data, asked(tmp_path / "odd.parquet", odd), tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()


def test_an_evaluation_with_bad_videos_equals_one_without_them(
    mini: Mini, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = shutil.copytree(mini.data, tmp_path / "odd")
    videos, events = pq.read_table(odd / "videos.parquet"), pq.read_table(odd / "events.parquet")
    more = {
        "video_id": [
            "year 1",
            "no time",
            None,
            videos["video_id"][0].as_py(),
            "no rows",
            "year 9998",
            "nul \0 " + "x" * 9000,
        ],
        "published_at": pa.array([-(2**63), None, 5, 6, -62_135_596_800_000_000, 2**62, 0], TIME),
        "title": ["a", "b", "c", "d", "\0" * 100, "e", "x" * 10**6],
        "creator_followers": [-1, 2**63 - 1, 0, 0, 2**63 - 1, None, -(2**63)],
    }
    followers = pa.array(more.pop("creator_followers"), pa.int64()).cast(
        videos.schema.field("creator_followers").type, safe=False
    )
    given = {field.name: pa.array(more.get(field.name, [None] * 7), field.type) for field in videos.schema}
    rows = pa.table(given | {"creator_followers": followers})
    pq.write_table(pa.concat_tables([videos, rows]), odd / "videos.parquet")
    orphan = events.slice(0, 1).set_column(0, "video_id", pa.array(["nobody"]))
    pq.write_table(pa.concat_tables([events, orphan]), odd / "events.parquet")
    tables = [
        evaluate(bundle, data, published_from_us=mini.as_of_us - 9 * 24 * HOUR_US, ages_h=[6], horizons_h=[6])
        for data in (mini.data, odd)
    ]
    assert tables[0].keys() == tables[1].keys()
    assert tables[0]["M3TR"]["pooled"]["n"] == tables[1]["M3TR"]["pooled"]["n"]
    assert tables[0]["M3TR"]["pooled"]["nmse"] == pytest.approx(tables[1]["M3TR"]["pooled"]["nmse"])
    printed = capsys.readouterr().err
    for reason in (
        "no id: 1 row left out",
        "no time of publication: 1 row",
        "id is not unique",
        "unknown video: 1 row",
    ):
        assert reason in printed

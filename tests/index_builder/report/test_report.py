"""The report is one self-contained page, whatever the titles contain, and its figures agree with the scores."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.evaluation.evaluate import evaluate
from index_builder.evaluation.holdout_evaluation import holdout_evaluation
from index_builder.report import MODEL
from index_builder.report.bootstrap import VideoBootstrap
from index_builder.report.charts import dots, reliability
from index_builder.report.evaluation import cell_name
from index_builder.report.examples import choose
from index_builder.report.forecast_groups import MIN_FORECASTS, by_hours, by_name
from index_builder.report.svg import Scale, count, count_ticks, factor, factor_ticks, hours, short, ticks
from index_builder.samples.queries import Pairs, Queries
from index_builder.samples.samples import draw_samples
from index_builder.scoring.cell_scores import POOLED
from index_builder.scoring.metrics import intervals
from model.bundle import load_bundle
from model.engagement.bins import HOUR_US
from model.engagement.video import Video
from model.errors import DataError
from tests.conftest import Mini
from tests.model.growth_parts import parts

pytestmark = pytest.mark.slow

HOSTILE = "</svg></style><script>alert('x')</script><img src=x onerror=\"alert(1)\"> & \u202etxet"
TITLES = (HOSTILE, "אולי זה סרטון ארוך " * 12, "短视频 的 标题" * 30, "x" * 400, "", None, "nul \x00 and \x1b[31m")
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags close in order, and records everything that would run or be fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.foreign: list[str] = []
        self.n: dict[str, int] = {}
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.n[tag] = self.n.get(tag, 0) + 1
        wrong = {"src", "href", "xlink:href", "srcset", "action", "data"}
        self.foreign += [tag] if tag in {"script", "iframe", "object", "embed", "link", "img"} else []
        self.foreign += [name for name, _ in attrs if name in wrong or name.startswith("on")]


@pytest.fixture(scope="module")
def hostile(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini data set with titles and categories that try to break the page."""
    data = tmp_path_factory.mktemp("hostile") / "data"
    shutil.copytree(mini.data, data)
    table = pq.read_table(data / "videos.parquet")
    n = len(table)
    for name, values in (("title", TITLES), ("category", (HOSTILE, "分类" * 30, None))):
        column = pa.array([values[i % len(values)] for i in range(n)], pa.string())
        table = table.drop_columns([name]).append_column(name, column)
    pq.write_table(table, data / "videos.parquet")
    return data


def test_evaluate_writes_a_self_contained_page_and_escapes_titles(
    mini: Mini, hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    start = mini.as_of_us - 6 * 24 * HOUR_US
    table = evaluate(mini.bundle, hostile, published_from_us=start, ages_h=(6.0,), horizons_h=(6.0, 24.0), report=out)
    assert MODEL in capsys.readouterr().out
    html = out.read_text(encoding="utf-8")
    page = Page(html)
    assert page.foreign == []
    assert "url(" not in html and "@import" not in html
    text = " ".join(page.text)
    assert short(HOSTILE, 160) in text
    assert "Some of the videos scored here were published before" in text
    assert f"{table[MODEL][POOLED]['nmse']:.4f}" in text
    for arm in table:
        assert arm in text
    assert page.n["svg"] > 12
    assert "6 h old, +24 h" in text
    assert "Probabilities of passing a threshold" in text


def test_evaluate_refuses_an_impossible_report_path_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report: .*none/page\.html'; allowed: a file in a folder that exists"):
        evaluate(tmp_path, tmp_path, published_from_us=0, report=tmp_path / "none" / "page.html")


def test_a_bundle_has_a_report_on_its_holdout_videos(mini: Mini) -> None:
    load_bundle(mini.bundle)  # its hash is the one that the manifest names
    page = Page((mini.bundle / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert page.foreign == []
    for arm in ("mean growth", "persistence", "growth factor", "log-linear", MODEL, f"{MODEL} without retrieval"):
        assert arm in text
    assert "training held them out" in text
    assert "Forecasts of single videos" in text and "Which past videos the model used" in text


def test_the_holdout_evaluation_scores_only_videos_that_decided_nothing(mini: Mini) -> None:
    data = load_dataset(mini.data, before_us=mini.as_of_us)
    observed = Observed.of(data, "view")
    samples = draw_samples(
        observed,
        until_us=mini.as_of_us,
        max_age_us=20 * 24 * HOUR_US,
        max_horizon_us=48 * HOUR_US,
        n_labels=3,
        cuts_per_video=6,
        seed=0,
    )
    decides = samples.video % 3 == 0
    perfect = parts(samples.growth, 0.1)
    found = holdout_evaluation(load_bundle(mini.bundle).manifest, data, samples, samples, decides, {MODEL: perfect})
    assert not (found.queries.video % 3 == 0).any()
    assert len(found.queries.video) == int((np.isfinite(samples.growth) & ~(samples.cold | decides)[:, None]).sum())
    assert found.table[MODEL][POOLED]["nmse"] < 1e-6
    assert found.rival() == min((a for a in found.table if a != MODEL), key=lambda a: found.table[a][POOLED]["nmse"])
    nothing = holdout_evaluation(
        load_bundle(mini.bundle).manifest, data, samples, samples, np.ones_like(decides), {MODEL: perfect}
    )
    assert (len(nothing.queries.video), nothing.table) == (0, {})


def test_examples_are_chosen_by_growth_independent_of_the_order_of_rows_and_videos() -> None:
    n = 60
    rank = np.random.default_rng(5).permutation(n // 2)
    growth = np.repeat(rank / 10.0, 2)
    horizon = np.where(np.arange(n) % 2, 24, 72) * HOUR_US
    pairs = Pairs(np.ones(n), horizon / 1e6, np.ones(n), growth)
    queries = Queries(np.arange(n) // 2, np.full(n, HOUR_US), horizon, np.full(n, "age1h+24h"), pairs)
    ids = [f"v{i:02d}" for i in range(n // 2)]
    chosen = choose(queries, ids, 6)
    assert (queries.horizon_us[chosen] == 72 * HOUR_US).all()
    assert rank[queries.video[chosen]].tolist() == [2, 7, 12, 17, 22, 27]
    again = queries.take(np.random.default_rng(0).permutation(n))
    assert again.video[choose(again, ids, 6)].tolist() == queries.video[chosen].tolist()
    level = Pairs(pairs.age_s, pairs.horizon_s, pairs.value_now, np.ones(n))
    tied = Queries(queries.video, queries.now_us, queries.horizon_us, queries.cell, level)
    assert tied.video[choose(tied, ids[::-1], 6)].tolist() == [27, 22, 17, 12, 7, 2]
    assert len(choose(queries.take(np.zeros(0, np.int64)), ids)) == 0


def test_the_bootstrap_of_means_agrees_with_the_bootstrap_of_the_scores() -> None:
    rng = np.random.default_rng(3)
    video = np.repeat(np.arange(80), 5)
    y = np.repeat(rng.normal(size=80), 5) + rng.normal(size=400) * 0.1
    mean = VideoBootstrap(video, draws=2000).mean(np.abs(y))
    low, high = intervals(video, y, np.zeros((400, 1)), draws=2000)["mae"]
    assert mean.value == pytest.approx(np.abs(y).mean())
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=0.02)
    alone = VideoBootstrap(np.arange(400), draws=2000).mean(np.abs(y))
    assert mean.high - mean.low > 1.7 * (alone.high - alone.low)
    some = VideoBootstrap(video).mean(y, video < 40)
    assert (some.n, some.value) == (200, pytest.approx(y[:200].mean()))  # type: ignore[comparison-overlap]
    assert VideoBootstrap(video).quotient(2 * np.abs(y), np.abs(y)).low == pytest.approx(2)


def test_small_groups_are_left_out() -> None:
    hours = np.concatenate([np.zeros(MIN_FORECASTS), np.full(MIN_FORECASTS - 1, 5.0), np.full(MIN_FORECASTS, 1000.0)])
    groups = by_hours(hours * 3600, (0, 6, 24))
    assert {name: int(rows.sum()) for name, rows in groups.items()} == {
        "0 to 6 h": 2 * MIN_FORECASTS - 1,
        "above 24 h": MIN_FORECASTS,
    }
    videos = [Video("a", 0, category="Music"), Video("b", 0, category="News"), Video("c", 0)]
    n = np.array([MIN_FORECASTS, 10, MIN_FORECASTS])
    video = np.repeat(np.arange(3), n)
    pairs = Pairs(*(np.ones(len(video)) for _ in range(4)))
    queries = Queries(video, video, video, np.full(len(video), ""), pairs)
    assert {k: int(v.sum()) for k, v in by_name(queries, videos, lambda v: v.category).items()} == {
        "Music": MIN_FORECASTS,
        "(unknown)": MIN_FORECASTS,
    }


def test_numbers_are_formatted_for_people() -> None:
    assert [factor(x) for x in (1, 1.18, 2.5, 12.3, 1234, 0.5, 0.012, np.nan)] == [
        "\N{MULTIPLICATION SIGN}" + t for t in ("1", "1.18", "2.5", "12", "1,234", "0.5", "0.012")
    ] + ["-"]
    assert [count(x) for x in (0, 950, 999.9, 12_345, 4_560_000, 7e9)] == ["0", "950", "1k", "12.3k", "4.56M", "7G"]
    assert [hours(h * HOUR_US) for h in (0.25, 1, 2.51, 72.4)] == ["15 min", "1 h", "2.5 h", "72 h"]
    assert short("标题标题", 4) == "标题…" and short("a\x00b\n\x1bc", 9) == "ab c" and short("ab", 2) == "ab"
    assert (cell_name("age24h+72h"), cell_name("others"), cell_name(POOLED)) == ("24 h old, +72 h", "others", "all")


def test_ticks_are_inside_the_axis_and_apart() -> None:
    assert ticks(0.69, 0.86) == pytest.approx([0.7, 0.75, 0.8, 0.85])
    assert [label for _, label in factor_ticks(-1.2, 5)][1] == "\N{MULTIPLICATION SIGN}1"
    for low, high in ((0.0, 20.0), (16.2, 16.9), (10.0, 10.05)):
        marks = [at for at, _ in count_ticks(low, high)]
        assert len(marks) >= 2 and min(marks) >= low and max(marks) <= high and marks == sorted(marks)
    scale = Scale(0, 10, 100, 0)
    assert (scale(-5), scale(2.5), scale(99), scale(float("nan"))) == (100, 75, 0, 100)


def test_charts_draw_empty_and_hostile_input() -> None:
    bootstrap = VideoBootstrap(np.zeros(3, np.int64))
    mean = bootstrap.mean(np.ones(3))
    Page(str(dots("a <b>", [], factors=True)))
    Page(str(reliability("none", ((0.1, 0.5, 0.9), [mean] * 3), None, {HOSTILE: [mean] * 3})))

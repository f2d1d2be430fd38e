"""report.html: one page without scripts or outside resources, for someone who has not read the code."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.report import charts, tables
from index_builder.report.bootstrap import Mean, VideoBootstrap
from index_builder.report.evaluation import MODEL, POOLED, Evaluation, cell_name
from index_builder.report.forecast_groups import AGES_H, HORIZONS_H, LEAST, Groups, by_hours, by_name
from index_builder.report.style import STYLE
from index_builder.report.summary import counted, facts, summary
from index_builder.report.svg import Svg, count, factor, hours
from index_builder.scoring.metrics import HIGH, LOW, MEDIAN

_LEVELS: Final = (LOW, MEDIAN, HIGH)
_AIM: Final = HIGH - LOW
_WITH_NEIGHBOURS: Final = 4
_CLOSE: Final = (1.05, 1.1, 1.2, 1.5, 2.0, 3.0)


def write_page(path: Path, evaluation: Evaluation) -> None:
    """Write the page."""
    path.write_text(render(evaluation), encoding="utf-8")


def render(evaluation: Evaluation) -> str:
    """The page as HTML."""
    lead, sections = "Too little was held back to score anything.", ""
    if len(evaluation.queries.video):
        bootstrap = VideoBootstrap(evaluation.queries.video)
        lead = summary(evaluation, bootstrap)
        sections = "".join(part for section in _View(evaluation, bootstrap).sections() for part in section)
    name = f"{MODEL}: forecasts of {counted(evaluation.manifest.metric)}"
    listed = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts(evaluation).items())
    warning = (
        '<p class="warn">Some of the videos scored here were published before the time up to which the model learned: these '
        "scores may flatter it.</p>"
        if evaluation.seen_in_training
        else ""
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{html.escape(name)}</title><style>{STYLE}</style></head><body><main>
<h1>{html.escape(name)}</h1>
<p class="lead">{html.escape(lead)}</p>{warning}
<dl>{listed}</dl>
{sections}
</main></body></html>
"""


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """The sections of one evaluation, each a run of HTML parts; ``spread`` draws its videos."""

    of: Evaluation
    bootstrap: VideoBootstrap

    def sections(self) -> Iterator[Iterator[str]]:
        yield self._scores()
        yield self._calibration()
        yield self._errors()
        yield self._outcomes()
        if self.of.examples:
            yield self._examples()
            yield self._neighbours()

    def _scores(self) -> Iterator[str]:
        table = self.of.table
        yield _head(
            "All methods in one table",
            "Everything is measured on the growth log2((1 + count then) / (1 + count now)): an error of 1 is a factor of 2. "
            "Small figures are 95% intervals, found by drawing whole videos again and again. nMSE is the mean squared error over "
            "the variance; MAE the mean error; SRC Spearman's rank correlation; pinball the mean loss of the three "
            "quantiles; cover the share of outcomes inside the interval (aim 0.80), width its mean width. Methods "
            "without an interval have no cover. The best is bold, whether or not the difference is certain.",
        )
        yield tables.scores(table, POOLED)
        yield "<h3>nMSE by cell</h3>"
        yield tables.matrix(table, "nmse", 3)
        yield "<details><summary>All scores of each cell</summary>"
        for cell in next(iter(table.values())):
            if cell != POOLED:
                yield f"<h3>{html.escape(cell_name(cell))}</h3>{tables.scores(table, cell)}"
        yield "</details>"
        if (cold := self.of.manifest.evaluation.get("cells", {}).get("cold start")) is not None:
            yield (
                f"<p>Before anything is counted (cold start; {cold['n']:,} forecasts on videos held back in training): rank "
                f"correlation {cold['src']:.3f}, MAE {cold['mae']:.3f}, cover {cold['cover']:.3f}.</p>"
            )

    def _calibration(self) -> Iterator[str]:
        rival = self._rival_with_interval()
        yield _head(
            "Do the intervals hold?",
            "First: of all outcomes, how many came out below each of the three quantiles; on the dashed line the model "
            "knows exactly how sure it can be, below it more came than it thought. What lies exactly on a quantile counts as below it, "
            "which lifts the line where many videos do not grow at all. A thin line is one class of ages. Second: how often the "
            "outcome lay inside the interval from the 10% to the 90% quantile, which should be 80%.",
        )
        yield self._key(rival)
        ages = by_hours(self.of.queries.pairs.age_s, AGES_H)
        y = self.of.queries.pairs.growth
        groups = {f"age {name}": self._below(MODEL, rows) for name, rows in ages.items()} if len(ages) > 1 else {}
        plot = charts.reliability(
            "Share of outcomes below each quantile",
            _LEVELS,
            self._below(MODEL),
            self._below(rival) if rival else None,
            groups,
        )
        cells: Groups = {cell_name(POOLED): np.ones(len(y), dtype=bool)}
        cells |= {cell_name(c): self.of.queries.cell == c for c in self.of.table[MODEL] if c != POOLED}
        inside = {arm: self._inside(arm) for arm in (MODEL, rival) if arm}
        rows = [
            charts.ChartRow(
                name,
                self.bootstrap.mean(inside[MODEL], at),
                self.bootstrap.mean(inside[rival], at) if rival else None,
                f"n={count(at.sum())}",
            )
            for name, at in cells.items()
        ]
        covers = charts.dots("Share of outcomes inside the interval", rows, factors=False, aim=_AIM)
        yield _two([("Outcomes below each quantile", plot), ("Outcomes inside the interval", covers)])

    def _errors(self) -> Iterator[str]:
        rival, q = self.of.rival(), self.of.queries
        yield _head(
            "How far off, and where?",
            "The mean error as a factor (2 to the power of MAE): 1.2 means that forecast and outcome lie a fifth apart. Further "
            "left is better. A bar is the 95% interval; at the right end the number of forecasts and how often the model's "
            f"interval held. Groups of fewer than {LEAST} forecasts are left out.",
        )
        yield self._key(rival)
        groups = {
            "By age of the video": by_hours(q.pairs.age_s, AGES_H),
            "By horizon": by_hours(q.pairs.horizon_s, HORIZONS_H),
            "By category": by_name(q, self.of.videos, lambda v: v.category),
            "By language": by_name(q, self.of.videos, lambda v: v.language),
        }
        yield _two([(name, self._error_rows(name, group, rival)) for name, group in groups.items() if len(group) > 1])

    def _outcomes(self) -> Iterator[str]:
        growth, y = self.of.growths[MODEL][:, 1], self.of.queries.pairs.growth
        yield _head(
            "Forecast against outcome",
            "Each square is a number of forecasts, darker for more (on a logarithmic scale). On the dashed line the median forecast "
            "was exact; above it more came than was forecast.",
        )
        miss = np.abs(growth - y)
        items = "".join(
            f"<tr><td>within {factor(limit)}</td><td>{(miss <= np.log2(limit)).mean():.1%}</td></tr>"
            for limit in _CLOSE
        )
        chart = charts.density("Forecast growth against real growth", growth, y)
        yield f'<div class="two"><figure><h3>Growth as forecast (across) and as it came (up)</h3>{chart}</figure>'
        yield f"<div><h3>How many forecasts came how close</h3><table><tbody>{items}</tbody></table></div></div>"

    def _learned_from(self) -> str:
        """A caution where the bundle's model has learned from its examples' outcomes; the scores are of one that had not."""
        training = self.of.manifest.training
        if training["learned_all"] and any(e.video.published_us <= training["as_of_us"] for e in self.of.examples):
            return (
                " These forecasts are by the finished model, which has learned from these videos too, so they look better "
                "than new ones will; all scores above are by a model that had not."
            )
        return ""

    def _examples(self) -> Iterator[str]:
        yield _head(
            "Forecasts of single videos",
            "Chosen by a rule, not by hand: of each video the forecast that looks furthest ahead was taken, of those the "
            f"further half, put in order by how much the video really grew, and {len(self.of.examples)} picked at even steps from the "
            "least to the most grown. Counts are on a logarithmic scale, over the age of the video; the upright line is the moment of the "
            "forecast." + self._learned_from(),
        )
        yield (
            '<p class="soft"><i class="key seen"></i>known at that moment &ensp; <i class="key model"></i>median &ensp; '
            '<i class="key fan"></i>interval of 80% &ensp; <i class="key outcome"></i>what came</p><div class="many">'
        )
        for e in self.of.examples:
            last = e.quantiles[-1]
            then = (1 + e.value_now) * e.growth - 1
            held = "inside" if last[0] - 0.5 <= then <= last[2] + 0.5 else "outside"
            yield (
                f"<figure>{tables.title(e.video.title, e.video.video_id)}{charts.fan(e)}<figcaption>"
                f"{count(e.value_now)} at {hours(e.age_us)}; {hours(e.horizons_us[-1])} later forecast {count(last[1])} "
                f"({count(last[0])} to {count(last[2])}), came {count(then)}: {held}</figcaption></figure>"
            )
        yield "</div>"

    def _neighbours(self) -> Iterator[str]:
        step = max(len(self.of.examples) // _WITH_NEIGHBOURS, 1)
        chosen = [e for e in self.of.examples[step // 2 :: step] if e.neighbours]
        if not chosen:
            return
        yield _head(
            "Which past videos were asked",
            "The model looks up past videos that resemble this one: in content (title, tags, category, language) and in trajectory "
            "(how its engagement ran up to that age). Both are cosines, 1 is the same. Growth is by how much the neighbour's count "
            "grew from the same age on, over the same time, or as much of it as was known at the moment of the forecast; in the "
            "first row what the video itself then did, which the model did not know.",
        )
        for e in chosen:
            yield (
                f"<h3>{hours(e.age_us)} old, {hours(e.horizons_us[-1])} ahead: forecast "
                f"{factor((1 + e.quantiles[-1, 1]) / (1 + e.value_now))}</h3>{tables.neighbours(e)}"
            )

    def _error_rows(self, name: str, groups: Groups, rival: str | None) -> Svg:
        y, inside = self.of.queries.pairs.growth, self._inside(MODEL)
        miss = {arm: np.abs(g[:, g.shape[1] // 2] - y) for arm, g in self.of.growths.items() if arm in (MODEL, rival)}
        rows = [
            charts.ChartRow(
                label,
                self.bootstrap.mean(miss[MODEL], at),
                self.bootstrap.mean(miss[rival], at) if rival else None,
                f"{count(at.sum())}, {inside[at].mean():.0%}",
            )
            for label, at in groups.items()
        ]
        return charts.dots(f"Mean error as a factor, {name.lower()}", rows, factors=True)

    def _below(self, arm: str, rows: NDArray[np.bool_] | None = None) -> list[Mean]:
        y, growth = self.of.queries.pairs.growth, self.of.growths[arm]
        return [self.bootstrap.mean((y <= growth[:, i]).astype(np.float64), rows) for i in range(len(_LEVELS))]

    def _inside(self, arm: str) -> NDArray[np.float64]:
        y, growth = self.of.queries.pairs.growth, self.of.growths[arm]
        return ((y >= growth[:, 0]) & (y <= growth[:, 2])).astype(np.float64)

    def _rival_with_interval(self) -> str | None:
        rival = self.of.rival()
        return rival if rival and self.of.growths[rival].shape[1] == len(_LEVELS) else None

    def _key(self, rival: str | None) -> str:
        other = f' &ensp; <i class="key other"></i>{html.escape(rival)}' if rival else ""
        return f'<p class="soft"><i class="key model"></i>{MODEL}{other}</p>'


def _head(title: str, text: str) -> str:
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>"


def _two(plots: list[tuple[str, Svg]]) -> str:
    figures = "".join(f"<figure><h3>{html.escape(name)}</h3>{svg}</figure>" for name, svg in plots)
    return f'<div class="two">{figures}</div>'

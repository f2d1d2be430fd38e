"""Computes what the sections of a report show: tables, charts and examples of one evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index_builder.report import charts
from index_builder.report.bootstrap import Mean, VideoBootstrap
from index_builder.report.evaluation import MODEL, Evaluation, cell_name
from index_builder.report.examples import Example
from index_builder.report.forecast_groups import AGES_H, HORIZONS_H, MIN_FORECASTS, Groups, by_hours, by_name
from index_builder.report.score_tables import ScoresOfCell, all_scores, nmse_by_cell
from index_builder.report.svg import Svg, count
from index_builder.scoring import answers
from index_builder.scoring.cell_scores import POOLED
from index_builder.scoring.metrics import HIGH, LOW
from index_builder.scoring.paired import Difference

_TARGET_COVER: Final = HIGH - LOW
_EXAMPLES_WITH_NEIGHBOURS: Final = 4
_FACTORS: Final = (1.05, 1.1, 1.2, 1.5, 2.0, 3.0)


@dataclass(frozen=True, slots=True, eq=False)
class ExampleOutcome:
    """An example, its chart, the count that the video reached, and whether this count was inside the interval."""

    example: Example
    chart: Svg
    reached: float
    held: bool


@dataclass(frozen=True, slots=True, eq=False)
class Sections:
    """The sections of one evaluation. ``bootstrap`` draws the evaluation's videos."""

    evaluation: Evaluation
    bootstrap: VideoBootstrap

    min_forecasts = MIN_FORECASTS

    @property
    def pooled_scores(self) -> ScoresOfCell:
        """Return a table with every score of every method, computed over the queries of all cells together."""
        return all_scores(self.evaluation.table, POOLED)

    @property
    def nmse_by_cell(self) -> ScoresOfCell:
        """Return a table with the nMSE of every method in each cell."""
        return nmse_by_cell(self.evaluation.table)

    @property
    def scores_of_cells(self) -> Iterator[ScoresOfCell]:
        """Return one table per cell, with every score of every method."""
        return (all_scores(self.evaluation.table, cell) for cell in self._cells())

    @property
    def cold_start(self) -> dict[str, Any] | None:
        """Return the scores that training computed for cold starts, or None if there are none."""
        found: dict[str, Any] | None = self.evaluation.manifest.evaluation.get("cells", {}).get("cold start")
        return found

    @property
    def rival(self) -> str | None:
        """Return the best method other than the model, or None if there is none."""
        return self.evaluation.rival()

    @property
    def rival_with_interval(self) -> str | None:
        """Return the best method other than the model if this method forecasts quantiles, otherwise None."""
        rival = self.rival
        return rival if rival and answers.levels(self.evaluation.growths[rival]) else None

    @property
    def calibration_charts(self) -> list[tuple[str, Svg]]:
        """Return charts of the fraction of outcomes below each quantile and of the fraction inside the interval."""
        rival, ages = self.rival_with_interval, by_hours(self.evaluation.queries.pairs.age_s, AGES_H)
        growths = self.evaluation.growths
        below = charts.reliability(
            "Share of outcomes below each quantile",
            (answers.levels(growths[MODEL]), self._below(MODEL)),
            (answers.levels(growths[rival]), self._below(rival)) if rival else None,
            {f"age {name}": self._below(MODEL, rows) for name, rows in ages.items()} if len(ages) > 1 else {},
        )
        queries = self.evaluation.queries
        cells: Groups = {cell_name(POOLED): np.ones(len(queries.video), dtype=bool)}
        cells |= {cell_name(cell): queries.cell == cell for cell in self._cells()}
        inside = {method: self._inside(method) for method in (MODEL, rival) if method}
        rows = [
            charts.ChartRow(name, *self._means(inside, rival, group), f"n={count(group.sum())}")
            for name, group in cells.items()
        ]
        covers = charts.dots("Share of outcomes inside the interval", rows, factors=False, target=_TARGET_COVER)
        return [("Outcomes below each quantile", below), ("Outcomes inside the interval", covers)]

    @property
    def thresholds(self) -> list[dict[str, Any]]:
        """Return the tenths of the probabilities of passing a threshold, or an empty list if the model forecasts too few quantiles."""
        found: list[dict[str, Any]] = self.evaluation.table[MODEL][POOLED].get("thresholds", [])
        return found

    @property
    def differences(self) -> list[tuple[str, str]]:
        """Return pairs of (method, the model's scores minus this method's in words), for methods that were compared in pairs."""
        compared: dict[str, Any] = self.evaluation.table[MODEL][POOLED].get("minus", {})
        return [
            (method, ", ".join(f"{name} {Difference(**found)}" for name, found in scores.items()))
            for method, scores in compared.items()
        ]

    @property
    def error_charts(self) -> list[tuple[str, Svg]]:
        """Return charts of the mean errors by age, horizon, category and language."""
        queries, videos = self.evaluation.queries, self.evaluation.videos
        groups = {
            "By age of the video": by_hours(queries.pairs.age_s, AGES_H),
            "By horizon": by_hours(queries.pairs.horizon_s, HORIZONS_H),
            "By category": by_name(queries, videos, lambda v: v.category),
            "By language": by_name(queries, videos, lambda v: v.language),
        }
        return [(name, self._errors(name, group)) for name, group in groups.items() if len(group) > 1]

    @property
    def density_chart(self) -> Svg:
        """Return a chart of forecast growth against real growth."""
        return charts.density("Forecast growth against real growth", *self._median_and_real())

    @property
    def shares_within(self) -> list[tuple[float, float]]:
        """Return pairs of (factor, fraction of the forecasts whose error was at most this factor)."""
        median, real = self._median_and_real()
        miss = np.abs(median - real)
        return [(limit, float((miss <= np.log2(limit)).mean())) for limit in _FACTORS]

    @property
    def examples(self) -> Sequence[Example]:
        """Return the example videos that the report shows."""
        return self.evaluation.examples

    @property
    def learned_from_examples(self) -> bool:
        """Return whether the bundle's model has learned from the examples' outcomes.

        The scores always come from a model that did not learn from these outcomes.
        """
        training = self.evaluation.manifest.training
        as_of_us = training["as_of_us"]
        return bool(training["learned_all"]) and any(e.video.published_us <= as_of_us for e in self.examples)

    @property
    def outcomes(self) -> Iterator[ExampleOutcome]:
        """Yield the examples with their charts and outcomes."""
        for example in self.examples:
            low, _, high = example.quantiles[-1]
            reached = (1 + example.value_now) * example.growth - 1
            yield ExampleOutcome(example, charts.fan(example), reached, low - 0.5 <= reached <= high + 0.5)

    @property
    def examples_with_neighbours(self) -> list[Example]:
        """Return some of the examples that have neighbours."""
        step = max(len(self.examples) // _EXAMPLES_WITH_NEIGHBOURS, 1)
        return [e for e in self.examples[step // 2 :: step] if e.neighbours]

    def _cells(self) -> list[str]:
        return [cell for cell in self.evaluation.table[MODEL] if cell != POOLED]

    def _median_and_real(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return answers.median(self.evaluation.growths[MODEL]), self.evaluation.queries.pairs.growth

    def _errors(self, name: str, groups: Groups) -> Svg:
        y, inside, rival = self.evaluation.queries.pairs.growth, self._inside(MODEL), self.rival
        growths = self.evaluation.growths
        miss = {m: np.abs(answers.median(g) - y) for m, g in growths.items() if m in (MODEL, rival)}
        rows = [
            charts.ChartRow(
                label, *self._means(miss, rival, group), f"{count(group.sum())}, {inside[group].mean():.0%}"
            )
            for label, group in groups.items()
        ]
        return charts.dots(f"Mean error as a factor, {name.lower()}", rows, factors=True)

    def _means(
        self, values: dict[str, NDArray[np.float64]], rival: str | None, rows: NDArray[np.bool_]
    ) -> tuple[Mean, Mean | None]:
        """Return the mean of the model's values and the mean of the rival's values over ``rows``."""
        other = self.bootstrap.mean(values[rival], rows) if rival else None
        return self.bootstrap.mean(values[MODEL], rows), other

    def _below(self, method: str, rows: NDArray[np.bool_] | None = None) -> list[Mean]:
        y, growth = self.evaluation.queries.pairs.growth, self.evaluation.growths[method]
        found = [answers.quantile(growth, level) for level in answers.levels(growth)]
        return [self.bootstrap.mean((y <= bound).astype(np.float64), rows) for bound in found if bound is not None]

    def _inside(self, method: str) -> NDArray[np.float64]:
        y, growth = self.evaluation.queries.pairs.growth, self.evaluation.growths[method]
        low, high = answers.quantile(growth, LOW), answers.quantile(growth, HIGH)
        assert low is not None and high is not None
        return ((y >= low) & (y <= high)).astype(np.float64)

"""Judging a forecast: it must come from the right model and the right rows, and equal to the bit a forecast without any cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from model.forecast import Request
from service.forecasts.forecast_result import ForecastResult
from service.store.snapshot import Snapshot
from tests.simulation import oracle
from tests.simulation.books import Book, Books
from tests.simulation.models import Models, comparable
from tests.simulation.replica import Replica
from tests.simulation.stage import Stage
from tests.simulation.verdict import demand


class Judge:
    """Judges the forecasts of a world; ``seen`` counts their kinds."""

    def __init__(self, books: Books, stage: Stage, models: Models, seen: Counter[str]) -> None:
        self._books = books
        self._stage = stage
        self._models = models
        self._seen = seen

    def from_now_on(self, replica: Replica, video: int) -> Callable[[ForecastResult], None]:
        """A function that judges the response to a request that is sent now."""
        book = self._books[video]
        version, needed = book.version, set(book.acknowledged)
        excused, deployed = self._stage.excuse(replica), len(replica.deployed)

        def judge(answer: ForecastResult) -> None:
            possible = [deployment.version for deployment in replica.deployed[deployed - 1 :]]
            demand(answer.model_version in possible, f"model {answer.model_version}, not of {possible}")
            self._seen["switched"] += len(possible) > 1
            self.computed(answer)
            if answer.stale:
                self._seen["stale"] += 1
                demand(excused(), "stale although nothing had failed")
                return
            found = answer.snapshot.version
            demand(found >= version, f"version {found} after {version}")
            book.version = max(book.version, found)
            self._rows(answer.snapshot, book, needed)

        return judge

    def computed(self, answer: ForecastResult) -> None:
        """A forecast is a function of the snapshot, the time and the model."""
        snapshot, made = answer.snapshot, answer.forecast
        history = snapshot.history
        if answer.as_of_bins:
            self._seen["as of bins"] += 1
            history = oracle.ended_by(history, made.now_us - snapshot.video.published_us)
        self._seen["forecast"] += 1
        request = Request(snapshot.video, history, made.now_us, made.horizons_us)
        expected = comparable(self._models.from_scratch(answer.model_version, request))
        demand(comparable(made) == expected, "not the forecast from scratch:", comparable(made), expected)

    def _rows(self, snapshot: Snapshot, book: Book, needed: set[int]) -> None:
        published_us = snapshot.video.published_us
        demand(published_us in book.candidates, f"published at {published_us}, a time that was never sent")
        bounds = [oracle.expected(self._books.good(rows), published_us).cells for rows in (needed, book.sent)]
        wrong = oracle.outside(oracle.observed(snapshot).cells, *bounds)
        demand(not wrong, f"{snapshot.video.video_id}:", *wrong)

"""Problems are immutable, and no request gets another request's problem."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.ingest.group_commit import GroupCommitQueue
from service.problems import Invalid, Problem, Unavailable, did_you_mean, separate
from service.store.rows.row import InputRow
from service.store.rows.row_batch import RowBatch

ROW = InputRow(0, "a", 1_760_000_000_000_000, "events", (("view", 1),))


def test_a_problem_is_immutable() -> None:
    problem = Unavailable("down", retry_after_s=5, part="store")
    with pytest.raises(TypeError):
        problem.extra["rows"] = 3  # type: ignore[index]
    with pytest.raises(TypeError):
        problem.headers["Retry-After"] = "9"  # type: ignore[index]
    with pytest.raises(AttributeError):
        problem.detail = "another"


def test_a_copy_has_more_members_and_does_not_change_the_original() -> None:
    first = Invalid("views", "-1", "a whole number", reason="invalid")
    other = first.copy(headers={"Connection": "close"}, rows=3)
    assert type(other) is Invalid and other is not first
    assert (other.field, other.value, other.allowed, str(other)) == ("views", "-1", "a whole number", str(first))
    assert other.body() == {**first.body(), "rows": 3}
    assert dict(other.headers) == {"Connection": "close"} and dict(first.headers) == {}
    assert "rows" not in first.body()


class Odd(Exception):
    """Cannot be copied by calling its class with its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")


@pytest.mark.parametrize("error", [Unavailable("down"), ValueError("bad"), Odd(1, 2), OSError(5, "disk")])
def test_each_waiter_gets_an_exception_of_its_own(error: Exception) -> None:
    one, two = separate(error), separate(error)
    assert one is not two and one is not error
    assert one.__cause__ is error or isinstance(error, Problem)


def test_a_failed_commit_gives_each_batch_its_own_problem() -> None:
    class Down:
        async def ingest(self, batches: Any) -> Any:
            raise Unavailable("the event store does not answer", part="store")

    async def body() -> list[Any]:
        writer = GroupCommitQueue(Down(), commit_rows=100, queue_rows=1000)  # type: ignore[arg-type]
        return await asyncio.gather(*(writer.write(RowBatch.of([ROW])) for _ in range(8)), return_exceptions=True)

    problems = asyncio.run(body())
    assert all(isinstance(problem, Unavailable) for problem in problems)
    assert len({id(problem) for problem in problems}) == 8


def test_a_similar_name_is_suggested() -> None:
    assert did_you_mean("titel", ["title", "tags"]) == "; did you mean title?"
    assert did_you_mean("zzz", ["title", "tags"]) == ""

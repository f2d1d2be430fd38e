"""What only the bank on a server guarantees: deadlines, errors that name it, aliases."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event, active_count
from typing import Any

import pytest
from qdrant_client import QdrantClient

from model.bank import BankVideo
from model.bank.server import ServerBank
from model.errors import BankError
from tests.model.bank.bank_cases import DC, DT, one, video

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]


def failing(method: str, action: Callable[[], None]) -> QdrantClient:
    """An in-memory client. Once armed, one of its methods first runs ``action``."""
    client = QdrantClient(location=":memory:")
    original = getattr(client, method)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        if armed:
            action()
        return original(*args, **kwargs)

    armed: list[bool] = []
    client.arm = lambda: armed.append(True)  # type: ignore[attr-defined]
    setattr(client, method, replaced)
    return client


def filled_bank(client: QdrantClient, videos: Sequence[BankVideo], deadline_s: float) -> ServerBank:
    with ServerBank.build("", "m3tr_ab", DC, DT, 30.0, client=client) as bank:
        bank.upsert(videos)
    bank = ServerBank("", "m3tr_ab", DC, DT, deadline_s, write_deadline_s=deadline_s, client=client)
    bank.counts()
    client.arm()  # type: ignore[attr-defined]
    return bank


@pytest.mark.parametrize("method", ["query_batch_points", "retrieve", "scroll", "count", "upsert", "get_collection"])
def test_a_slow_server_is_a_bank_error_within_the_deadline(method: str) -> None:
    hang = Event()

    def wait() -> None:
        hang.wait(20)

    bank = filled_bank(failing(method, wait), [video("a")], 0.1)
    calls: dict[str, Callable[[], object]] = {
        "query_batch_points": lambda: one(bank),
        "retrieve": lambda: one(bank),
        "scroll": lambda: bank.creator(["ann"]),
        "count": bank.counts,
        "upsert": lambda: bank.upsert([video("b")]),
        "get_collection": bank.optimize,
    }
    for _ in range(10):  # more calls than may run at once
        start = time.monotonic()
        with pytest.raises(BankError, match=r"no response within 0\.1 s|earlier calls"):
            calls[method]()
        assert 0.05 < time.monotonic() - start < 1.0
    assert active_count() < 20
    hang.set()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # it recovers when the server answers again
        with suppress(BankError):
            calls[method]()
            return
    pytest.fail("the bank did not recover")


def test_a_failing_server_is_a_bank_error_that_names_it() -> None:
    def refuse() -> None:
        raise ConnectionError("refused")

    bank = filled_bank(failing("query_batch_points", refuse), [video("a")], 1.0)
    for _ in range(20):  # more calls than may run at once
        with pytest.raises(BankError, match=r"m3tr_ab.*ConnectionError: refused"):
            one(bank)


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection:UserWarning")
def test_a_server_that_is_down_fails_the_calls_but_not_the_start() -> None:
    bank = ServerBank("http://127.0.0.1:9", "m3tr_ab", DC, DT, 2.0, "secret-key")
    with pytest.raises(BankError) as caught:
        one(bank)
    assert "secret-key" not in str(caught.value) + repr(bank)
    bank.close()


def test_a_bank_with_other_dimensions_is_refused() -> None:
    client = failing("query_batch_points", lambda: None)
    filled_bank(client, [video("a")], 1.0)
    for dims in ((DC + 1, DT), (DC, DT + 1)):
        with pytest.raises(BankError, match="size"):
            ServerBank("", "m3tr_ab", *dims, 1.0, client=client).counts()


def test_a_fill_deletes_the_collections_of_older_fills() -> None:
    client = failing("query_batch_points", lambda: None)
    for name in ("old", "new"):
        filled_bank(client, [video(name)], 1.0)
    client.create_collection("m3tr_abc_content_1f", vectors_config={})  # another bundle's collection, which must stay
    filled_bank(client, [video("newest")], 1.0)
    names = sorted(collection.name for collection in client.get_collections().collections)
    assert [name.rsplit("_", 1)[0] for name in names] == ["m3tr_ab_content", "m3tr_ab_trajectory", "m3tr_abc_content"]

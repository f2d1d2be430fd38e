"""Tokens: events and counters agree, and later rows do not change earlier tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.engagement.bins import EDGES_US
from model.engagement.cells import cells_of
from model.engagement.history import History, Mode
from model.features.tokens import Tokens, n_features, tokenize

PUBLISHED_US = 1_700_000_000_123_456
TYPES = {"view": 0, "like": 1}
Counts = dict[tuple[int, str], int]

increments = st.dictionaries(
    st.tuples(st.integers(0, 260), st.sampled_from(["view", "like"])), st.integers(1, 2_000_000), max_size=40
)


def tokens_of(history: History, now_us: int) -> Tokens:
    return tokenize(cells_of([history], TYPES), np.array([PUBLISHED_US]), np.array([now_us]), len(TYPES))


def assert_same(a: Tokens, b: Tokens) -> None:
    for name in set(Tokens.__slots__) - {"prefix"}:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def history_of(cells: Counts, modes: dict[str, Mode]) -> History:
    return History.from_cells(modes, [(b, kind, value) for (b, kind), value in cells.items()])


@settings(max_examples=200, deadline=None)
@given(increments, st.integers(0, 20), st.floats(0, 1))
def test_events_and_counters_read_in_every_bin_give_the_same_tokens(cells: Counts, later: int, part: float) -> None:
    # Both types are seen from the first bin: a counter that reads 0 is an observation, an absent event is not.
    cells = {**cells, (0, "view"): cells.get((0, "view"), 3), (0, "like"): cells.get((0, "like"), 1)}
    last = max(b for b, _ in cells) + later
    now_us = PUBLISHED_US + int(EDGES_US[last] + part * (EDGES_US[last + 1] - 1 - EDGES_US[last]))
    snapshots: Counts = {}
    for kind in TYPES:
        total = 0
        for b in range(last + 1):
            total += cells.get((b, kind), 0)
            snapshots[b, kind] = total
    events = tokens_of(history_of(cells, {"view": "events", "like": "events"}), now_us)
    counters = tokens_of(history_of(snapshots, {"view": "counters", "like": "counters"}), now_us)
    assert len(events.features) == len({b for b, _ in cells})
    assert_same(events, counters)


@settings(max_examples=200, deadline=None)
@given(increments, st.integers(0, 260), st.sampled_from(["events", "counters"]))
def test_later_cells_do_not_change_tokens_of_earlier_bins(cells: Counts, cut: int, mode: Mode) -> None:
    modes: dict[str, Mode] = {"view": "events", "like": mode}
    early = tokens_of(
        history_of({key: v for key, v in cells.items() if key[0] <= cut}, modes), PUBLISHED_US + int(EDGES_US[cut + 1])
    )
    late = tokens_of(history_of(cells, modes), PUBLISHED_US + int(EDGES_US[400]))
    n = len(early.features)
    assert not early.pending[0]
    assert (late.interval_s[:n, 2] <= EDGES_US[cut + 1] * 1e-6).all()
    assert (late.interval_s[n:, 2] > EDGES_US[cut + 1] * 1e-6).all()
    for name in ("features", "clock", "interval_s", "counts", "observed", "prefix"):
        np.testing.assert_array_equal(getattr(early, name), getattr(late, name)[:n], err_msg=name)


@settings(max_examples=200, deadline=None)
@given(increments, increments, st.sampled_from(["events", "counters"]))
def test_prefix_hashes_differ_for_different_histories(first: Counts, second: Counts, mode: Mode) -> None:
    modes: dict[str, Mode] = {"view": "events", "like": mode}
    a, b = (tokens_of(history_of(cells, modes), PUBLISHED_US + int(EDGES_US[400])) for cells in (first, second))
    for i in range(min(len(a.prefix), len(b.prefix))):
        if not np.array_equal(a.features[: i + 1], b.features[: i + 1]):
            assert a.prefix[i] != b.prefix[i]
    assert len(set(a.prefix.tolist())) == len(a.prefix)


def test_a_history_gives_its_counts_and_intervals() -> None:
    history = history_of({(2, "view"): 5, (2, "like"): 1, (10, "view"): 7}, {"view": "events", "like": "events"})
    tokens = tokens_of(history, PUBLISHED_US + 10_500_000)
    np.testing.assert_array_equal(tokens.counts, [[5, 1], [7, 0]])
    np.testing.assert_allclose(tokens.interval_s, [[0, 2, 3], [3, 10, 10.5]])
    assert tokens.pending[0] and tokens.last_end_s[0] == pytest.approx(10.5)
    np.testing.assert_array_equal(tokens.totals, [[12, 1]])


def test_a_counter_that_falls_makes_no_token() -> None:
    history = history_of({(2, "view"): 50, (5, "view"): 40, (9, "view"): 60}, {"view": "counters"})
    tokens = tokens_of(history, PUBLISHED_US + 20_000_000)
    np.testing.assert_array_equal(tokens.counts[:, 0], [50, 10])
    np.testing.assert_allclose(tokens.interval_s, [[0, 0, 3], [3, 6, 10]])


def test_an_empty_history_gives_no_token() -> None:
    for history in (History(), history_of({}, {"view": "events", "like": "counters"})):
        tokens = tokens_of(history, PUBLISHED_US + 90_000_000)
        assert tokens.offsets.tolist() == [0, 0] and tokens.features.shape == (0, n_features(2))
        assert not tokens.pending[0] and tokens.last_end_s[0] == 0 and (tokens.totals == 0).all()
        assert tokens.read_clock[0, 0] == pytest.approx(90 / 3600)
        assert np.isfinite(tokens.read_features).all()

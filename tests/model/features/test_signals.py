"""The features of signals: from rows in the builder and from histories in the service, equal to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.engagement.bins import HOUR_US, SECOND_US, bin_index
from model.engagement.history import History, Readings
from model.engagement.signals import SignalRows, signal_cells_at, signal_cells_of
from model.features.schema import Schema
from model.features.signals import N_SIGNAL, Signal
from model.signal_net import SignalNet

RANK = Signal("rank", tuple(np.linspace(1, 101, 11)))
SCHEMA = Schema(("view",), "views", 1, 1, signals=(RANK,))
P0 = 1_760_000_000_000_000


def rows_of(*videos: list[tuple[float, float]]) -> SignalRows:
    """Return the rows of videos whose readings are given as (age in hours, value)."""
    flat = [(P0 + round(at * HOUR_US), value) for readings in videos for at, value in sorted(readings)]
    offsets = np.concatenate([[0], np.cumsum([len(readings) for readings in videos])]).astype(np.int64)
    return SignalRows(offsets, np.array([t for t, _ in flat], np.int64), np.array([v for _, v in flat], np.float64))


def history_of(readings: list[tuple[float, float]], now_h: float) -> History:
    """Return what a store keeps of the readings up to ``now_h``: the newest one of each bin."""
    cells: dict[int, float] = {}
    for at, value in sorted(readings):
        if at <= now_h:
            cells[int(bin_index(round(at * HOUR_US)))] = value
    if not cells:
        return History({})
    return History({}, signals={"rank": Readings(np.array(list(cells)), np.array(list(cells.values())))})


def features(rows: SignalRows, video: list[int], now_h: list[float]) -> np.ndarray:
    published = np.full(len(video), P0)
    now_us = published + np.round(np.array(now_h) * HOUR_US).astype(np.int64)
    cells = signal_cells_at(rows, np.array(video), now_us, published)
    return SCHEMA.signal_features([cells], (now_us - published) / SECOND_US)


def test_builder_and_service_agree_to_the_bit() -> None:
    rng = np.random.default_rng(3)
    videos = [
        [
            (float(at), float(value))
            for at, value in zip(np.sort(rng.exponential(9, n)), rng.uniform(-5, 120, n), strict=True)
        ]
        for n in rng.integers(0, 40, 30)
    ]
    video = np.repeat(np.arange(30), 6)
    now_h = rng.uniform(0, 60, len(video))
    built = features(rows_of(*videos), video.tolist(), now_h.tolist())
    histories = [history_of(videos[v], at) for v, at in zip(video, now_h, strict=True)]
    age_s = np.round(now_h * HOUR_US).astype(np.int64) / SECOND_US
    served = SCHEMA.signal_features([signal_cells_of(histories, "rank")], age_s)
    np.testing.assert_array_equal(built, served)
    assert (built[:, 0] == 1).mean() > 0.5 and len(np.unique(built[:, 1])) > 50
    for i in range(0, len(histories), 17):
        alone = SCHEMA.signal_features([signal_cells_of(histories[i : i + 1], "rank")], age_s[i : i + 1])
        np.testing.assert_array_equal(alone[0], served[i])


def test_the_columns() -> None:
    readings = [(1.0, 81.0), (5.5, 41.0), (9.0, 21.0), (10.0, 11.0)]
    row = features(rows_of(readings), [0], [10.0])[0]
    assert row[:3].tolist() == pytest.approx([1, 0.1, 0])
    # An hour ago the newest known reading was that of 5.5 h: the bin of 9 h had not ended.
    assert row[3:].tolist() == pytest.approx([1, -0.3, 1, -0.3, 0, 0, 1, -0.7])
    later = features(rows_of(readings), [0], [14.0])[0]
    assert later[2] == pytest.approx(np.log1p(3.85 * 3600) / 12, abs=0.01)


def test_what_is_later_than_now_is_not_read() -> None:
    rows = rows_of([(1.0, 81.0), (5.0, 41.0)])
    early = features(rows, [0], [4.9])
    np.testing.assert_array_equal(early, features(rows_of([(1.0, 81.0)]), [0], [4.9]))
    assert features(rows, [0], [0.9])[0].tolist() == [0] * N_SIGNAL


def test_a_value_outside_the_training_range_stays_at_its_ends() -> None:
    rows = rows_of([(1.0, -1e15)], [(1.0, 1.0)], [(1.0, 101.0)], [(1.0, 1e15)])
    assert features(rows, [0, 1, 2, 3], [2.0] * 4)[:, 1].tolist() == [0, 0, 1, 1]


def test_the_network_masks_a_missing_signal() -> None:
    net = SignalNet(1).eval()
    rows = rows_of([(1.0, 50.0), (2.0, 40.0)], [])
    encoded = net(torch.from_numpy(features(rows, [0, 1], [3.0, 3.0])))
    assert encoded.shape == (2, net.dim)
    assert encoded[0].abs().sum() > 0 and encoded[1].abs().sum() == 0
    net.train()
    dropped = net(torch.from_numpy(np.repeat(features(rows, [0], [3.0]), 300, axis=0))).abs().sum(1) == 0
    assert 5 <= int(dropped.sum()) <= 70

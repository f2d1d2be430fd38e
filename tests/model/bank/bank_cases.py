"""Videos, queries and brute-force answers, shared by the bank's tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from model.bank import Bank, BankQuery, BankVideo, Candidate, Curve

DC, DT = 12, 8
HOUR = 3_600_000_000
T0 = 1_700_000_000_000_000
LATE = T0 + 10_000 * HOUR


def vec(dim: int, *values: float) -> np.ndarray:
    return np.array([*values, *[0.0] * (dim - len(values))], dtype=np.float32)


def curve(*points: tuple[int, int]) -> Curve:
    pairs = np.array(points, dtype=np.int64).reshape(-1, 2)
    return Curve(pairs[:, 0].copy(), pairs[:, 1].copy())


def video(video_id: str, **changes: Any) -> BankVideo:
    base = BankVideo(
        video_id, T0, "music", "ann", vec(DC, 3, 4), {2: (vec(DT, 1, 1), T0 + 2 * HOUR)}, curve((HOUR, 5)), T0 + HOUR
    )
    return replace(base, **changes)


def query(**changes: Any) -> BankQuery:
    return replace(BankQuery(vec(DC, 1), vec(DT, 1), 2, LATE, "", 10), **changes)


def ids(found: list[Candidate]) -> list[str]:
    return [candidate.video_id for candidate in found]


def one(bank: Bank, **changes: Any) -> list[Candidate]:
    [found] = bank.search([query(**changes)])
    return found


def random_videos(rng: np.random.Generator, n: int) -> list[BankVideo]:
    videos = []
    for i in range(n):
        published = T0 + int(rng.integers(0, 500)) * HOUR + int(rng.integers(0, 1000))
        ages = np.cumsum(rng.integers(1, 30, int(rng.integers(0, 21)))) * HOUR
        trajectories = {
            int(b): (rng.normal(size=DT).astype(np.float32), published + int(rng.integers(0, 400)) * HOUR)
            for b in rng.choice(4, int(rng.integers(0, 5)), replace=False)
        }
        content = rng.normal(size=DC).astype(np.float32) if rng.random() < 0.8 else None
        videos.append(
            BankVideo(
                f"v{i:04d}",
                published,
                None if i % 3 else "music",
                None if i % 5 == 0 else f"c{i % 7}",
                content,
                trajectories,
                Curve(ages, np.cumsum(rng.integers(0, 10**9, len(ages)))),
                published + int(rng.integers(0, 100)) * HOUR,
                {"likes": Curve(ages[1:], np.cumsum(rng.integers(0, 10**6, len(ages) - 1)))} if len(ages) % 2 else {},
            )
        )
    return videos


def random_queries(rng: np.random.Generator, n: int) -> list[BankQuery]:
    return [
        BankQuery(
            rng.normal(size=DC).astype(np.float32) if rng.random() < 0.8 else None,
            rng.normal(size=DT).astype(np.float32) if rng.random() < 0.8 else None,
            int(rng.integers(0, 5)),
            T0 + int(rng.integers(0, 1000)) * HOUR,
            f"v{rng.integers(0, 300):04d}",
            int(rng.integers(1, 17)),
        )
        for _ in range(n)
    ]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def brute_force(videos: list[BankVideo], q: BankQuery) -> list[str]:
    def top(scored: list[tuple[float, str]]) -> list[str]:
        return [video_id for _, video_id in sorted(scored)[: q.limit]]

    others = [v for v in videos if v.video_id != q.exclude]
    by_content = [
        (-cosine(v.content, q.content), v.video_id)
        for v in others
        if q.content is not None and v.content is not None and v.usable_from_us <= q.now_us
    ]
    by_trajectory = [
        (-cosine(v.trajectories[q.age_bucket][0], q.trajectory), v.video_id)
        for v in others
        if q.trajectory is not None and q.age_bucket in v.trajectories and v.trajectories[q.age_bucket][1] <= q.now_us
    ]
    return list(dict.fromkeys(top(by_content) + top(by_trajectory)))


def facts(found: list[Candidate]) -> list[tuple[Any, ...]]:
    """All facts of an answer, in a form that can be compared."""
    return [
        (
            c.video_id,
            c.published_us,
            c.category,
            c.creator_id,
            c.curve.ages_us.tolist(),
            c.curve.values.tolist(),
            {name: (own.ages_us.tolist(), own.values.tolist()) for name, own in c.further.items()},
            None if c.content is None else c.content.tolist(),
            None if c.trajectory is None else c.trajectory.tolist(),
        )
        for c in found
    ]


def generation(g: int, n: int = 400) -> list[BankVideo]:
    """Videos whose vectors, times, curve and creator all tell their generation ``g``."""
    return [
        video(
            f"v{i}",
            content=vec(DC, g + 1, 100),
            trajectories={g % 3: (vec(DT, g + 1, 100), T0 + g)},
            usable_from_us=T0 + g,
            creator_id=f"g{g}",
            curve=curve((g, g)),
        )
        for i in range(n)
    ]

"""Draws a plan from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.simulation.faults import Cut, Delivery
from tests.simulation.plan import (
    DAY_US,
    NOW_US,
    START_US,
    Amnesia,
    Ask,
    Crash,
    Delete,
    Deliver,
    Flaw,
    Form,
    Mode,
    Partition,
    Plan,
    PlannedRow,
    PlannedVideo,
    Predict,
    Register,
    Resend,
    Send,
    SendOnce,
    SendWrong,
    Skew,
    Start,
    Step,
    Switch,
    Wait,
)

SECOND_US = 1_000_000
REPLICAS = 2
LATER_US = (1, 37_500_000, 600_300_000)
"""Differences by which publication times are corrected."""
KINDS = ("view", "like")
ODD_IDS = ("a}b{", "c/d e", "視頻")
FORMS: tuple[Form, ...] = ("items", "json", "lines")
FLAWS: tuple[Flaw, ...] = ("early", "early", "future", "type", "count", "field")


def draw(seed: int) -> Plan:
    """The plan of a seed, a pure function of the seed."""
    chance = random.Random(seed)
    videos = tuple(_video(chance, i) for i in range(chance.randint(1, 4)))
    rows = tuple(_rows(chance, videos, chance.choice((6, 20, 60))))
    settings = {
        "cache_videos": chance.choice((1, 2, 64)),
        "park_rows": chance.choice((3, 2000, 2000)),
        "park_videos": chance.choice((1, 5000, 5000)),
    }
    return Plan(seed, REPLICAS, settings, videos, rows, tuple(_Steps(chance, videos, rows).draw()))


def _video(chance: random.Random, index: int) -> PlannedVideo:
    name = chance.choice((f"v{index}", f"v{index}", f"{chance.choice(ODD_IDS)}{index}"))
    published = [START_US + index * SECOND_US]
    if chance.random() < 0.5:
        published.append(published[0] + chance.choice(LATER_US))
    modes: dict[str, Mode] = {kind: "events" if chance.random() < 0.5 else "counters" for kind in KINDS}
    return PlannedVideo(name, tuple(published), modes)


def _rows(chance: random.Random, videos: tuple[PlannedVideo, ...], limit: int) -> list[PlannedRow]:
    rows = []
    # Rows without ids may be merged; rows with ids may be sent again.
    identified = chance.choice((0.3, 0.8, 1.0))
    for index, video in enumerate(videos):
        # Few different times, so that rows share bins; one at publication, some days later.
        ages = [0, *(int(10 ** chance.uniform(0, 6.2)) * SECOND_US for _ in range(chance.randint(1, 12)))]
        for number in range(chance.randint(1, limit)):
            kind = chance.choice(KINDS)
            mode = video.modes[kind]
            age_us = chance.choice(ages)
            time_us = video.published[-1] + age_us + chance.randint(0, age_us // 50 + SECOND_US)
            # Videos share ids, which must count for each video separately.
            with_id = chance.random() < (identified if mode == "events" else 0.3)
            values = [(kind, chance.choice((1, 2, chance.randint(1, 1000), chance.randint(1, 10**12))))]
            if mode == "counters":
                values = [(each, chance.randint(0, 1000)) for each in KINDS if video.modes[each] == mode]
            reach = chance.choice((0, 0, 7, 10**9)) if mode == "events" else 0
            flaw: Flaw = chance.choice(FLAWS) if chance.random() < 0.1 else ""
            if flaw == "early":
                time_us = video.published[0] - chance.randint(1, 1000 * SECOND_US)
            elif flaw == "future":
                time_us = NOW_US + DAY_US + number
            event_id = f"{mode[0]}{number}" if with_id else None
            rows.append(PlannedRow(index, mode, time_us, tuple(values), reach, event_id, flaw))
    chance.shuffle(rows)
    return rows


class _Steps:
    def __init__(self, chance: random.Random, videos: tuple[PlannedVideo, ...], rows: tuple[PlannedRow, ...]) -> None:
        self._chance = chance
        self._videos = videos
        self._rows = rows
        self._unsent = {mode: [i for i, row in enumerate(rows) if row.mode == mode] for mode in ("events", "counters")}
        # Each world has its own mix: some are calm, some have only one kind of trouble.
        self._trouble = chance.choice((0.0, 0.1, 0.25, 0.5))
        kinds: list[tuple[Callable[[], Step], float]] = [
            (self._send, 10),
            (self._ask, 4),
            (self._resend, 2),
            (self._register, 2),
            (self._delete, chance.choice((0, 0, 0.5, 2))),
            (self._predict, 1.5),
            (self._send_once, 1.5),
            (self._send_wrong, 0.5),
            (self._switch, 0.5),
            (self._skew, 0.5),
            *(
                (make, weight * self._trouble * chance.choice((0, 1, 3)))
                for make, weight in (
                    (self._wait, 4.0),
                    (self._partition, 2.0),
                    (self._crash, 2.0),
                    (self._start, 2.0),
                    (self._amnesia, 0.5),
                )
            ),
        ]
        self._makers = [make for make, _ in kinds]
        self._weights = [weight for _, weight in kinds]

    def draw(self) -> list[Step]:
        chance = self._chance
        steps: list[Step] = []
        # How many messages arrive for each new request: the fewer, the more is under way at the same time.
        flow = chance.choice((0.5, 1.5, 3.0))
        if chance.random() < 0.15:
            steps += self._corrected()
        for _ in range(chance.randint(5, 40)):
            steps.append(chance.choices(self._makers, self._weights)[0]())
            while chance.random() < flow / (1 + flow):
                steps.append(self._deliver())
        return steps

    def _corrected(self) -> list[Step]:
        """Change a publication time that another replica may remember; then send rows that cannot be repeated."""
        chance = self._chance
        video = max(range(len(self._videos)), key=lambda i: len(self._videos[i].published))
        last = len(self._videos[video].published) - 1
        here, there = chance.sample(range(REPLICAS), 2)
        arrive: list[Step] = [Deliver(0)] * 4
        once = [i for i, row in enumerate(self._rows) if row.video == video and not row.repeatable]
        return [
            Register(here, video, last, 0),
            *arrive,
            Register(there, video, 0, 1),
            *arrive,
            SendOnce(here, tuple(once)),
        ]

    def _replica(self) -> int:
        return self._chance.randrange(REPLICAS)

    def _some_video(self) -> int:
        return self._chance.randrange(len(self._videos))

    def _delivery(self) -> Delivery:
        if self._chance.random() >= self._trouble:
            return Delivery.PASS
        return self._chance.choice((Delivery.LOST, Delivery.UNHEARD, Delivery.TORN))

    def _deliver(self) -> Step:
        # Mostly the oldest message; any other message overtakes it.
        which = 0 if self._chance.random() < 0.6 else self._chance.randrange(8)
        return Deliver(which, self._delivery(), self._chance.randrange(1, 8))

    def _send(self) -> Step:
        chance = self._chance
        mode = chance.choice(("events", "counters"))
        repeatable = [i for i, row in enumerate(self._rows) if row.mode == mode and row.repeatable]
        new = [i for i in self._unsent[mode] if self._rows[i].repeatable]
        picked = new[: chance.choice((1, 3, 10, 30))]
        self._unsent[mode] = [i for i in self._unsent[mode] if i not in picked]
        if repeatable and (not picked or chance.random() < 0.3):
            picked += chance.choices(repeatable, k=chance.randint(1, 6))
        chance.shuffle(picked)
        return Send(self._replica(), tuple(picked), chance.choice(FORMS))

    def _resend(self) -> Step:
        return Resend(self._replica(), self._chance.choice((1, 5, 100)), self._chance.randrange(1000))

    def _send_once(self) -> Step:
        once = [i for i, row in enumerate(self._rows) if not row.repeatable]
        count = min(len(once), self._chance.choice((1, 5, 40)))
        return SendOnce(self._replica(), tuple(self._chance.sample(once, count)))

    def _send_wrong(self) -> Step:
        return SendWrong(self._replica(), self._some_video())

    def _register(self) -> Step:
        video = self._some_video()
        published = self._chance.randrange(len(self._videos[video].published))
        return Register(self._replica(), video, published, self._chance.randrange(3))

    def _predict(self) -> Step:
        video = self._some_video()
        rows = [i for i, row in enumerate(self._rows) if row.video == video and row.repeatable and not row.flaw]
        picked = self._chance.sample(rows, min(len(rows), self._chance.randint(0, 8)))
        return Predict(self._replica(), video, tuple(picked), self._chance.random() < 0.5)

    def _ask(self) -> Step:
        video = self._some_video()
        if self._chance.random() < 0.5:
            return Ask(self._replica(), video, None)
        later = int(10 ** self._chance.uniform(0, 6.3)) * SECOND_US
        return Ask(self._replica(), video, self._videos[video].published[-1] + later)

    def _delete(self) -> Step:
        deliveries = tuple(self._delivery() for _ in range(self._chance.randint(0, 4)))
        return Delete(self._replica(), self._some_video(), deliveries)

    def _switch(self) -> Step:
        return Switch(self._replica(), self._chance.randrange(2))

    def _skew(self) -> Step:
        return Skew(self._replica(), self._chance.randint(-20, 20) * SECOND_US)

    def _wait(self) -> Step:
        return Wait(self._chance.choice((0.001, 0.5, 2.5, 11.0)))

    def _partition(self) -> Step:
        return Partition(self._replica(), self._chance.choice((Cut.REFUSED, Cut.SILENT, None, None)))

    def _crash(self) -> Step:
        return Crash(self._replica())

    def _start(self) -> Step:
        return Start(self._replica())

    def _amnesia(self) -> Step:
        return Amnesia()

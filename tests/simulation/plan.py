"""A plan: a small world, and the list of steps that happen in it.

A plan is data. It can be printed, and any part of its steps is again a plan, so a failing plan can be made shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from model.engagement.types import counter_column
from service.times import iso
from tests.simulation.faults import Cut, Delivery

START_US = 1_760_000_000_000_000
"""The earliest publication time of any video."""
DAY_US = 86_400_000_000
NOW_US = START_US + 30 * DAY_US
"""The clock at the start, before a replica's skew."""

HORIZONS_US = (3_600_000_000, DAY_US)

Mode = Literal["events", "counters"]
Form = Literal["items", "json", "lines"]
"""How a batch reaches the service: as values, as a JSON body, as lines of NDJSON."""
Flaw = Literal["", "early", "future", "type", "count", "field"]


@dataclass(frozen=True, slots=True)
class PlannedVideo:
    """A video; ``published`` are the times that it may be registered with, ``modes`` how each type is fed."""

    id: str
    published: tuple[int, ...]
    modes: dict[str, Mode]


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One row that a producer may send, any number of times if it has an id or holds counters.

    ``flaw``: why it must be refused; the store refuses "early", the parser all others.
    """

    video: int
    mode: Mode
    time_us: int
    values: tuple[tuple[str, int], ...]
    reach: int = 0
    id: str | None = None
    flaw: Flaw = ""

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice is safe."""
        return self.id is not None or self.mode == "counters" or self.flaw != ""

    def item(self, video_id: str) -> dict[str, Any]:
        """The row as a client writes it."""
        item: dict[str, Any] = {"video_id": video_id, "time": iso(self.time_us)}
        if self.mode == "events":
            kind, count = self.values[0]
            item |= {"type": "wave" if self.flaw == "type" else kind, "count": 0 if self.flaw == "count" else count}
            if self.reach:
                item["reach"] = self.reach
        else:
            # Beside known counters, an unknown one would be ignored and the row accepted.
            known = {} if self.flaw == "type" else dict(self.values)
            item |= {counter_column(kind): -1 if self.flaw == "count" else value for kind, value in known.items()}
            if self.flaw == "type":
                item["waves"] = 1
        if self.flaw == "field":
            item["colour"] = "red"
        if self.id is not None:
            item["id"] = self.id
        return item


@dataclass(frozen=True, slots=True)
class Send:
    """A producer sends rows (of one mode) in one batch: new ones, or acknowledged ones again."""

    replica: int
    rows: tuple[int, ...]
    form: Form


@dataclass(frozen=True, slots=True)
class Resend:
    """A producer repeats all rows that were not acknowledged, in batches of ``size``, in an order drawn from ``order``."""

    replica: int
    size: int
    order: int


@dataclass(frozen=True, slots=True)
class SendOnce:
    """Event rows without an id, which cannot be repeated; they are sent while nothing else happens and nothing fails."""

    replica: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SendWrong:
    """A row in the mode that does not feed its video's type, while nothing else happens."""

    replica: int
    video: int


@dataclass(frozen=True, slots=True)
class Register:
    """PUT a video, with one of its publication times and a title."""

    replica: int
    video: int
    published: int
    title: int


@dataclass(frozen=True, slots=True)
class Predict:
    """POST /predict with rows, and with the known registration or none."""

    replica: int
    video: int
    rows: tuple[int, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """DELETE a video until that is acknowledged; ``deliveries``: what happens to its messages."""

    replica: int
    video: int
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """A forecast; ``at_us`` None is now."""

    replica: int
    video: int
    at_us: int | None


@dataclass(frozen=True, slots=True)
class Deliver:
    """One of the messages under way is delivered or lost."""

    which: int
    delivery: Delivery = Delivery.PASS
    part: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Time passes, and deadlines with it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Partition:
    """A replica is cut off from the store; ``cut`` None: it is connected again."""

    replica: int
    cut: Cut | None


@dataclass(frozen=True, slots=True)
class Crash:
    """A replica crashes, with its memory and its work; messages that it had sent are still on their way."""

    replica: int


@dataclass(frozen=True, slots=True)
class Start:
    """A crashed replica starts."""

    replica: int


@dataclass(frozen=True, slots=True)
class Skew:
    """A replica's clock is set."""

    replica: int
    skew_us: int


@dataclass(frozen=True, slots=True)
class Switch:
    """A replica switches to another model."""

    replica: int
    model: int


@dataclass(frozen=True, slots=True)
class Amnesia:
    """The store loses our functions, as after a failover to a server that never had them."""


Step = (
    Send
    | Resend
    | SendOnce
    | SendWrong
    | Register
    | Predict
    | Delete
    | Ask
    | Deliver
    | Wait
    | Partition
    | Crash
    | Start
    | Skew
    | Switch
    | Amnesia
)


@dataclass(frozen=True)
class Plan:
    """A world and what happens in it; ``settings`` are the replicas', ``replicas`` how many there are."""

    seed: int
    replicas: int
    settings: dict[str, Any]
    videos: tuple[PlannedVideo, ...]
    rows: tuple[PlannedRow, ...]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        used = sorted({i for step in self.steps for i in getattr(step, "rows", ())})
        return "\n".join(
            [
                f"seed {self.seed}: {self.replicas} replicas, {self.settings}",
                *(f"  video {i}: {video}" for i, video in enumerate(self.videos)),
                *(f"  row {i}: {self.rows[i]}" for i in used),
                *(f"  {i:3}. {step}" for i, step in enumerate(self.steps)),
            ]
        )

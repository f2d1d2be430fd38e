"""A stored video in memory, and its payload in an engine."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bank.interface import BankVideo, Candidate, Curve, PastVideo


@dataclass(slots=True)
class StoredVideo:
    """A decoded video.

    ``trajectories`` maps an age bucket to (unit vector, usable_from_us). The value is None if the video has no
    trajectory in the bucket. If a bucket is not in the dictionary, the trajectory was not fetched.
    """

    video_id: str
    published_us: int
    usable_from_us: int
    category: str | None
    creator_id: str | None
    curve: Curve
    content: NDArray[np.float32] | None
    trajectories: dict[int, tuple[NDArray[np.float32], int] | None] = field(default_factory=dict)
    further: Mapping[str, Curve] = field(default_factory=dict)

    def trajectory(self, age_bucket: int, now_us: int) -> NDArray[np.float32] | None:
        """Return the trajectory vector of an age bucket. Return None if it does not exist, or was not usable yet at ``now_us``."""
        found = self.trajectories.get(age_bucket)
        return found[0] if found is not None and found[1] <= now_us else None

    def candidate(self, age_bucket: int, now_us: int) -> Candidate:
        """Return the video as it was known at ``now_us``."""
        return Candidate(
            self.video_id,
            self.published_us,
            self.category,
            self.creator_id,
            self.curve.until(now_us - self.published_us),
            self.content if self.usable_from_us <= now_us else None,
            self.trajectory(age_bucket, now_us),
            {name: curve.until(now_us - self.published_us) for name, curve in self.further.items()},
        )

    def past(self) -> PastVideo:
        """Return the video as an entry of its creator's list, with the whole curves."""
        return PastVideo(self.video_id, self.published_us, self.curve, self.further)


def encode_curve(curve: Curve) -> str:
    """Encode a curve as Base64 text. The bytes are the ages followed by the values, as little-endian int64."""
    return base64.b64encode(np.concatenate([curve.ages_us, curve.values]).astype("<i8").tobytes()).decode("ascii")


def decode_curve(text: str) -> Curve:
    """Decode the text that ``encode_curve`` returned. The arrays are read-only."""
    ages_us, values = np.frombuffer(base64.b64decode(text), dtype="<i8").astype(np.int64, copy=False).reshape(2, -1)
    return Curve(ages_us, values)


def payload(video: BankVideo) -> dict[str, Any]:
    """Return the payload of a video's point. Fields that are None are left out, and so are curves if there are no further ones."""
    fields = {
        "video_id": video.video_id,
        "published_us": int(video.published_us),
        "usable_from_us": int(video.usable_from_us),
        "category": video.category,
        "creator_id": video.creator_id,
        "curve": encode_curve(video.curve),
        "curves": {name: encode_curve(curve) for name, curve in video.further.items()} or None,
    }
    return {key: value for key, value in fields.items() if value is not None}


def row(fields: Mapping[str, Any], content: list[float] | None) -> StoredVideo:
    """Decode a point from its payload and its content vector, as returned by an engine."""
    return StoredVideo(
        fields["video_id"],
        fields["published_us"],
        fields["usable_from_us"],
        fields.get("category"),
        fields.get("creator_id"),
        decode_curve(fields["curve"]),
        None if content is None else frozen(content),
        further={name: decode_curve(text) for name, text in fields.get("curves", {}).items()},
    )


def frozen(values: list[float]) -> NDArray[np.float32]:
    """Return the values as a float32 vector. The vector is read-only, because search results share memory with the stored videos."""
    vector = np.array(values, dtype=np.float32)
    vector.flags.writeable = False
    return vector

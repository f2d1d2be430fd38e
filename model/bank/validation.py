"""Checks of what a bank accepts. Every DataError names the field, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.bank.interface import NEVER_US, BankQuery, BankVideo, Curve
from model.errors import DataError

MAX_AGE_BUCKET: Final = 254
MAX_CURVE_POINTS: Final = 40


def unit(vector: NDArray[np.float32] | None, dim: int, field: str) -> NDArray[np.float32] | None:
    """Return ``vector`` (dim,) divided by its norm, as float32. Return None if ``vector`` is None or has norm zero."""
    if vector is None:
        return None
    if vector.shape != (dim,):
        raise DataError(f"{field}: shape {vector.shape}, must be ({dim},)")
    wide = vector.astype(np.float64)
    norm = float(np.sqrt(wide @ wide))
    if not np.isfinite(norm):
        raise DataError(f"{field}: holds NaN or infinity, must be finite")
    return (wide / norm).astype(np.float32) if norm > 0 else None


def check_query(query: BankQuery) -> None:
    """Raise DataError if no bank can run the query. Vectors are not checked here, because ``unit`` checks them."""
    _time(query.now_us, "now_us", NEVER_US - 1)
    _bucket(query.age_bucket)
    if query.limit < 1:
        raise DataError(f"limit: {query.limit}, must be at least 1")


def check_video(video: BankVideo) -> None:
    """Raise DataError if the video cannot be stored correctly. Vectors are not checked here, because ``unit`` checks them."""
    if not video.video_id:
        raise DataError("video_id: empty, must be a non-empty string")
    _time(video.published_us, "published_us", NEVER_US - 1)
    starts = [video.usable_from_us, *(usable_us for _, usable_us in video.trajectories.values())]
    for usable_us in starts:
        _time(usable_us, "usable_from_us", NEVER_US)
        if usable_us < video.published_us:
            raise DataError(f"usable_from_us: {usable_us}, must not be before published_us {video.published_us}")
    for bucket in video.trajectories:
        _bucket(bucket)
    for curve in (video.curve, *video.further.values()):
        _curve(curve)


def last_of_each(videos: Iterable[BankVideo]) -> list[BankVideo]:
    """Check the videos and return them. If several videos have the same id, only the last one is returned."""
    by_id: dict[str, BankVideo] = {}
    for video in videos:
        check_video(video)
        by_id[video.video_id] = video
    return list(by_id.values())


def findable(vector: NDArray[np.float32] | None, usable_us: int, dim: int, field: str) -> list[float] | None:
    """Return the unit vector that an engine stores for ``vector`` (dim,). Return None if no search can ever find the vector."""
    found = unit(vector, dim, field)
    return None if found is None or usable_us >= NEVER_US else found.tolist()


def _time(value: int, field: str, latest: int) -> None:
    if not 0 <= value <= latest:
        raise DataError(f"{field}: {value}, must be microseconds since 1970 in 0 .. {latest}")


def _bucket(bucket: int) -> None:
    if not 0 <= bucket <= MAX_AGE_BUCKET:
        raise DataError(f"age_bucket: {bucket}, must be in 0 .. {MAX_AGE_BUCKET}")


def _curve(curve: Curve) -> None:
    ages_us, values = curve.ages_us, curve.values
    if ages_us.ndim != 1 or ages_us.shape != values.shape or len(ages_us) > MAX_CURVE_POINTS:
        raise DataError(
            f"curve: shapes {ages_us.shape} and {values.shape}, must be (n,) and (n,) with n <= {MAX_CURVE_POINTS}"
        )
    if ages_us.dtype != np.int64 or values.dtype != np.int64:
        raise DataError(f"curve: dtypes {ages_us.dtype} and {values.dtype}, must be int64")
    if len(ages_us) and (ages_us[0] < 0 or (np.diff(ages_us) <= 0).any()):
        raise DataError(f"curve.ages_us: {ages_us.tolist()}, must be >= 0 and strictly increasing")
    if (values < 0).any():
        raise DataError(f"curve.values: {values.tolist()}, must be >= 0")

"""Float32 elementary functions that the compiler can vectorise.

``math.exp`` is a library call, so a loop that calls it is not vectorised. A loop over a polynomial is vectorised. The
training scan and the serving step both use these functions, so both compute equal values.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(inline="always")
def exp32(x):  # type: ignore[no-untyped-def]
    """Return e^x in float32 with a relative error below 2e-7. The result is 0 for x < -87. Above 88, x is clamped to 88."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    scaled = x * np.float32(1.4426950408889634)
    exponent = np.floor(scaled + np.float32(0.5))
    f = (x - exponent * np.float32(0.693359375)) - exponent * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * f + np.float32(1.3981999507e-3)
    p = p * f + np.float32(8.3334519073e-3)
    p = p * f + np.float32(4.1665795894e-2)
    p = p * f + np.float32(1.6666665459e-1)
    p = p * f + np.float32(5.0000001201e-1)
    p = p * f * f + f + np.float32(1.0)
    # This is 2^exponent, written into the exponent bits of a float32. numba adds int32 as int64, so the sum is cast to int32.
    power = np.int32((np.int32(exponent) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power


@njit(inline="always")
def silu32(x):  # type: ignore[no-untyped-def]
    """Return x * sigmoid(x) in float32."""
    return x / (np.float32(1.0) + exp32(-x))


@njit(inline="always")
def softplus32(x):  # type: ignore[no-untyped-def]
    """Return log(1 + e^x) in float32. Above 20, return x."""
    if x > np.float32(20.0):
        return x
    return np.float32(np.log1p(exp32(x)))

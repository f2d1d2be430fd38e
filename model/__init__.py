"""The core of M3TR Online, which computes a forecast from a video and its histogram.

This package imports neither the service nor the builder.
"""

from model.kernel_cache import choose

choose()

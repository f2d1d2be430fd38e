"""The core of M3TR Online: it computes a forecast from a video and its histogram.

It imports neither the service nor the builder.
"""

from model.kernel_cache import choose

choose()

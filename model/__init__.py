"""The core of M3TR Online: from a video and its histogram to a forecast.

It imports neither the service nor the builder.
"""

from model.kernel_cache import choose

choose()

"""The quantiles of a forecast: the head, their calibration, and the range that training supports."""

"""The life of a label: a forecast is kept, its outcome comes in, it is scored, and intervals adapt.

sampler (forecasts of its own, by its schedule) -> label_store (Redis) -> scorer -> sums         what GET /quality shows
|
+--> adaptive state -> adaptation -> forecaster
"""

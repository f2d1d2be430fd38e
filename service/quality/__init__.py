"""The life of a label: a forecast is kept, its outcome comes in, it is scored, and intervals adapt.

answer -> sampler -> ledger (Redis) -> scorer -> tally         what GET /quality shows
|
+--> adaptive state -> adaptation -> forecaster
"""

"""Scores forecasts once their outcomes are known, and adapts the intervals of later forecasts to these outcomes.

A forecast is kept as a label. When its outcome is known, the label is scored.

sampler (makes forecasts by its schedule) -> label store (Redis) -> scorer -> score sums        shown by GET /quality
                                                                         |
                                                                         +--> adaptive state -> adaptation -> forecaster
"""

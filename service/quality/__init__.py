"""From a forecast to its score: a forecast is kept as a label, its outcome comes in, it is scored, and intervals adapt.

sampler (makes forecasts by its schedule) -> label store (Redis) -> scorer -> score sums        shown by GET /quality
                                                                         |
                                                                         +--> adaptive state -> adaptation -> forecaster
"""

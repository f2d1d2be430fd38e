"""Uses a finished bundle: opens it, fills its bank, indexes later data and forecasts."""

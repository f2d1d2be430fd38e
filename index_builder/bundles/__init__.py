"""Use of a finished bundle: open it, fill its bank, index later data, forecast."""

"""Commands that use a finished bundle: open it, fill its bank, index later data, forecast."""

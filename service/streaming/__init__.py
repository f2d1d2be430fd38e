"""What changes while it is watched: streams of forecasts, and lists of videos."""

"""Engagement as it is kept: age bins, histograms, types, videos."""

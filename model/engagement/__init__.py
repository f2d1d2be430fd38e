"""The stored form of engagement: age bins, histograms, types and videos."""

"""How engagement is stored: age bins, histograms, types and videos."""

"""Model versions: loaded, warmed up, activated, and shadowed."""

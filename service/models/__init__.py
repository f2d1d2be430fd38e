"""Model versions: loaded, warmed, switched, and shadowed."""

"""Sources of samples, read by index."""

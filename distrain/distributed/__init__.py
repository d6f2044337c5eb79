"""One update out of many ranks."""

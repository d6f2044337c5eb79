"""Writes what is known about one run, or about several, as one HTML file that opens without a network."""

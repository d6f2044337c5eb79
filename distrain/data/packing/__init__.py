"""Packs datasets: writes any source of samples to a few large files, which `distrain.data.sources.packed` reads."""

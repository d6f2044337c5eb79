"""Packs datasets: any source of samples becomes a few large files, which `distrain.data.sources.packed` reads."""

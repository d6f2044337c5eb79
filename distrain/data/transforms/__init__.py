"""Random and fixed transforms of images."""

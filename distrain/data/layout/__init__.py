"""How data is laid out on disk, without torch."""

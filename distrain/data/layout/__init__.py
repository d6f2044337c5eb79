"""How data lies on disk, without torch."""

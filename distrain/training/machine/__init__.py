"""What a run sees of its machines: their figures, gathered from all ranks, the ranks that are slow, and its FLOPs."""

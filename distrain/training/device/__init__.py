"""What depends on the device: memory, micro-batch size, batch transforms."""

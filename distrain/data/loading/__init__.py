"""From an order of samples to batches on the device."""

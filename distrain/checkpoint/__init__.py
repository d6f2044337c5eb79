"""Writing checkpoints from tensors, and reading them back."""

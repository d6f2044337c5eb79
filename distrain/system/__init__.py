"""The host and the process: signals, files, locks, memory, GPUs."""

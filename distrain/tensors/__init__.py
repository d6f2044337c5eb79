"""What torch gives of tensors and modules, put to use: shards, devices, state, values as text."""

"""Turns an order of samples into batches on the device."""

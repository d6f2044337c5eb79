"""Watches the runs, the queue and the devices while clients read events, and gives each change to all of them."""

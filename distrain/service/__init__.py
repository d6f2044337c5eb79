"""The queue of this machine: devices, jobs, and what runs next."""

"""The queue of this machine: leases of its devices, jobs, and what runs next."""

"""The hub: one place from which to run work on all machines."""

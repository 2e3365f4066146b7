"""The hub: one place to drive every machine from."""

"""Relays of a hub: one per running execution."""

"""Relays of a hub, one for each running execution."""

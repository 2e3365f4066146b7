"""Notifications: their texts, and one module for each kind of channel."""

"""Notifications: the text of each, and one module for each kind of channel."""

"""Workspaces, and the zips they are made from."""

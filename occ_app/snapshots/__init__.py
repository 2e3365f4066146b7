"""Snapshots of workspaces in git directories under the home.

Their differences and restores are here, too.
"""

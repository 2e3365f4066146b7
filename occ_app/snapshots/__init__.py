"""Snapshots of workspaces in git directories under the home, their differences, and the way back to one."""

"""The daemon: starting, watching and stopping its processes."""

"""The control process: heartbeat, link, deliveries and upkeep."""

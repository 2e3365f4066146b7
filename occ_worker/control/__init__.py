"""The control process: heartbeat, link, deliveries, upkeep."""

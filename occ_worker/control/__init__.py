"""What the control process does: heartbeat, link, deliveries, upkeep."""

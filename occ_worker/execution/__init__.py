"""One execution on an agent, from the claim to the final event."""

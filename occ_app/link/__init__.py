"""The link: a hub's calls over the agent's own connection."""

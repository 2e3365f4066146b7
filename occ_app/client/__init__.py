"""HTTP clients of an agent and of a hub."""

from occ_app.client.agent_client import AgentClient

__all__ = ["AgentClient"]

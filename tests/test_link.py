"""The link between an agent and its hub: real daemons, and the hub's calls over the agent's own connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import link_hub
from tests.conftest import Occ
from tests.link_hub import LinkHub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LinkHub]:
    with link_hub.serve(tmp_path) as hub:
        yield hub


def start(occ: Occ, hub: LinkHub, *arguments: str) -> Occ:
    occ.start("--remote-url", hub.url, "--bind-address", "127.0.0.1", *arguments, OCC_API_KEY="made-up")
    hub.linked()
    return occ


def test_a_call_of_the_hub_reaches_an_agent_that_listens_on_loopback_alone(occ: Occ, hub: LinkHub) -> None:
    start(occ, hub)
    client = hub.client()
    assert client.health()["status"] == "healthy"
    assert client.workspaces() == []
    client.close()

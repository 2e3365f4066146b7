"""The live hub against its own OpenAPI document, for its clients and its agents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from occ_app.home import state
from tests.conftest import make_zip
from tests.documented_calls import KNOWN, document_of, only_in_test_all, own_token, tried
from tests.real_hub import Hub, hub_in

pytestmark = only_in_test_all


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with one machine, `box`, on which the execution `known` ran in the workspace `work`."""
    with hub_in(tmp_path, OCC_HUB_MAX_QUEUE="100000") as hub:
        hub.start().agent("box")
        hub.key("spare", "client")
        hub.client.upload("work", make_zip({"README.md": "hello\n"}))
        assert [*hub.client.execute("work", "hello", executionId="known")][-1].name == "complete"
        yield hub


def test_every_operation_of_a_hub_answers_as_documented_for_ids_of_any_kind(hub: Hub, tmp_path: Path) -> None:
    assert tried(hub.url, own_token(hub), tmp_path, spared(hub), document_of(hub, tmp_path)) > 600
    health = hub.request("GET", "/health", token=own_token(hub)).json()
    assert health["status"] == "healthy", health["problems"]


def test_every_operation_of_a_hub_answers_as_documented_for_ids_that_exist(hub: Hub, tmp_path: Path) -> None:
    config = KNOWN + '"path.agent_id" = "box"\n"path.name" = "spare"\n' + spared(hub)
    assert tried(hub.url, own_token(hub), tmp_path, config, document_of(hub, tmp_path)) > 600
    health = hub.request("GET", "/health", token=own_token(hub)).json()
    assert health["status"] == "healthy", health["problems"]


def spared(hub: Hub) -> str:
    """Keep the machine that has the workspace, and its key: without them the archive is rightly 503."""
    hub.agent("other")
    operations = (
        ("DELETE", "/agents/{agent_id}", "agent_id", "other"),
        ("POST", "/keys/{name}/revoke", "name", "spare"),
        ("POST", "/keys/{name}/rotate", "name", "spare"),
    )
    return "".join(
        f'[[operations]]\ninclude-method = "{method}"\ninclude-path = "{path}"\n'
        f'parameters = {{ "path.{name}" = "{value}" }}\n'
        for method, path, name, value in operations
    )


def test_what_agents_call_on_a_hub_is_answered_as_documented(hub: Hub, tmp_path: Path) -> None:
    document = document_of(hub, tmp_path)
    register = ("--include-path", "/api/agents/register")
    assert tried(hub.url, hub.agent_key, tmp_path, "", document, *register) > 50
    known = state.load(hub.home.parent / "box" / "state.json")
    assert known is not None
    config = f'[parameters]\n"path.agent_id" = "{known.agent_id}"\n'
    beat = ("--include-path", "/api/agents/{agent_id}/heartbeat")
    assert tried(hub.url, known.token, tmp_path, config, document, *beat) > 50
    assert hub.request("GET", "/health").status == 200

"""A run through a hub that its machine parks, with the real CLI."""

from __future__ import annotations

from pathlib import Path

import pytest

from occ_app.client.agent_client import AgentClient
from tests import real_cli
from tests.conftest import make_zip, wait_until
from tests.model_api import FAKE_KEY, serve
from tests.real_hub import hub_in
from tests.test_approvals import BASH
from tests.test_hub_questions import prompt, pytestmark  # noqa: F401 - the mark of the real CLI


def begin(client: AgentClient, name: str, **options: str) -> tuple[str, str]:
    """Start a run that asks, and wait until it is parked; returns its approval and the hash of the input."""
    client.upload(name, make_zip({"a.txt": "a\n"}))
    asked = prompt({"tools": [BASH]}, {"text": "Done."})
    for event in client.execute(name, asked, executionId=name, permissions="ask", **options):
        if event.name == "approval":
            found = (event.data["approvalId"], event.data["inputHash"])
        elif event.name == "parked":
            return found
    raise AssertionError("it was not parked")


@pytest.mark.parametrize("release", real_cli.deferring(), indirect=True)
def test_a_run_that_its_machine_parks_takes_nothing_of_the_hub_and_is_not_lost_with_it(
    tmp_path: Path, real_claude: Path
) -> None:
    with serve() as model, hub_in(tmp_path) as hub:
        hub.start(OCC_HUB_RELAYS="1", OCC_HUB_RECONNECT_SECONDS="1", OCC_HUB_HEARTBEAT_SECONDS="1")
        settings = {"OCC_CLAUDE_BIN": str(real_claude), "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
        settings |= {"OCC_PERMISSIONS": "ask", "OCC_HOLD_SECONDS": "0.3", "OCC_WORKERS": "1"}
        box = hub.agent("box", **settings)
        wait_until(lambda: box.client.health()["claude"]["version"], "the version to be known")
        approval, input_hash = begin(hub.client, "parks")
        wait_until(lambda: hub.client.execution("parks")["state"] == "parked", "the hub to show it")
        assert (
            hub.client.call("GET", f"/approvals/{approval}")["expiresAt"] > hub.client.execution("parks")["createdAt"]
        )
        # The only relay and the only worker are free for others.
        hub.client.upload("other", make_zip({"a.txt": "a\n"}))
        assert list(hub.client.execute("other", prompt({"text": "x"})))[-1].name == "complete"
        box.command("stop")
        wait_until(lambda: hub.client.call("GET", "/agents")["agents"][0]["state"] == "offline", "it to be away", 60)
        assert hub.client.execution("parks")["state"] == "parked"
        box.start()
        body = {"decision": "allow", "inputHash": input_hash}
        wait_until(lambda: hub.client.call("POST", f"/approvals/{approval}", body), "the answer to be taken")
        assert list(hub.client.events("parks"))[-1].name == "complete"
        assert (hub.place / "box" / "workspaces" / "parks" / "made-by-bash").exists()
        assert hub.client.execution("parks")["state"] == "succeeded"

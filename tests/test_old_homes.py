"""Homes written by 0.1.0, before the modules moved: this version starts on them and serves.

`data/homes-0.1.0.tar.gz` holds three homes, each stopped: `alone`, an agent with four executions in two workspaces;
`hub`, with one execution and two workspaces; and `box`, the agent that is registered with it. `keys.json` has the hub's
keys. All secrets in it were made for this test.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Occ, make_zip, names, occ_in, output
from tests.real_hub import Hub, hub_in

HOMES = Path(__file__).with_name("data") / "homes-0.1.0.tar.gz"


@pytest.fixture
def homes(tmp_path: Path) -> Path:
    """The folder with the three homes."""
    with tarfile.open(HOMES) as archive:
        archive.extractall(tmp_path, filter="data")
    for home in ("alone", "box", "hub"):
        (tmp_path / home).chmod(0o700)
    return tmp_path


@pytest.fixture
def alone(homes: Path) -> Iterator[Occ]:
    user = homes / "user"
    user.mkdir()
    with occ_in(user, home=homes / "alone") as occ:
        yield occ.start()


@pytest.fixture
def hub(homes: Path) -> Iterator[Hub]:
    keys = json.loads((homes / "keys.json").read_text())
    with hub_in(homes) as hub:
        hub.agent_key, hub.client_key = keys["agent"], keys["client"]
        yield hub.start()


def test_an_old_agent_keeps_its_token_executions_and_workspaces_and_goes_on_in_them(alone: Occ, homes: Path) -> None:
    assert alone.token == json.loads((homes / "alone" / "state.json").read_text())["token"]
    listed = alone.client.executions()["executions"]
    assert [(each["executionId"], each["state"]) for each in listed] == [
        ("exec-4", "succeeded"),
        ("exec-3", "failed"),
        ("exec-2", "succeeded"),
        ("exec-1", "succeeded"),
    ]
    assert names(list(alone.client.events("exec-1"))) == ["queued", "started", "output", "complete"]
    assert {each["workspaceId"] for each in alone.client.call("GET", "/workspaces")["workspaces"]} == {"work", "other"}
    assert alone.client.call("GET", "/search?q=milk")["results"][0]["execution"]["executionId"] == "exec-1"
    assert alone.client.call("GET", "/usage?by=workspace")["total"]["executions"] == 4
    again = list(alone.client.execute("work", "is there milk?", executionId="exec-1"))
    assert [event.seq for event in again] == [1, 2, 3, 4]  # it is not run again
    session = alone.client.execution("exec-1")["sessionId"]
    assert output(alone.run("once more", sessionId=session)) == "You said: once more"
    assert names(alone.run("hello", "other"))[-1] == "complete"
    alone.client.upload("other", make_zip({"y.txt": "y"}))
    assert names(alone.run("hello", "other"))[-1] == "complete"


def test_an_old_hub_and_its_agent_find_each_other_and_go_on(hub: Hub) -> None:
    [before] = [each["agentId"] for each in hub.client.call("GET", "/workspaces")["workspaces"] if each["agentId"]]
    box = hub.agent("box")  # whose hub had another port when it registered
    assert json.loads(box.command("status", "--json").stdout)["agentId"] == before
    assert names(list(hub.client.events("hub-1")))[-1] == "complete"
    assert output(list(hub.client.execute("work", "and again"))) == "You said: and again"
    assert output(list(hub.client.execute("unplaced", "first"))) == "You said: first"

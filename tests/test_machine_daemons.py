"""Real hubs and agents that are copied, restored and called at another address."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import sentences
from tests.conftest import Occ, make_zip, occ_in, output, steps, wait_until
from tests.real_hub import Hub, hub_in


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_in(tmp_path) as hub:
        yield hub.start()


def status(occ: Occ) -> dict[str, Any]:
    return dict(json.loads(occ.command("status", "--json").stdout))


def twin_of(hub: Hub, box: Occ) -> Occ:
    """A copy of a machine's home as it is, not started."""
    home = hub.home.parent / "twin"
    shutil.copytree(box.home, home, symlinks=True, ignore=shutil.ignore_patterns("run", "*.lock"))
    user = hub.home.parent / "twin-user"
    user.mkdir()
    variables = {"OCC_API_KEY": hub.agent_key, "OCC_REMOTE_URL": hub.url, "OCC_NAME": "box", "OCC_HUB_HOME": ""}
    return hub.stack.enter_context(occ_in(user, home=home, **variables))


def test_a_clone_that_is_started_beside_its_original_costs_no_run(hub: Hub) -> None:
    box = hub.agent("box")
    before = status(box)["agentId"]
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    stream = hub.client.execute("work", steps({"say": "begun "}, {"wait": "go"}, {"say": "done"}), executionId="e1")
    while next(stream).name != "output":
        pass
    twin = twin_of(hub, box)
    started = twin.command("start")
    assert sentences.IS_A_COPY in started.stderr
    twin.attach()
    other = status(twin)["agentId"]
    assert other != before
    assert any(before in problem for problem in status(twin)["problems"])
    assert any(before in problem for problem in hub.client.health()["problems"])
    wait_until(lambda: hub.seen(other)["via"] == "link", "the copy is linked as another machine")
    (box.home / "workspaces" / "work" / "go").touch()
    assert list(stream)[-1].name == "complete"
    assert output(list(hub.client.execute("work", "and again"))) == "You said: and again"
    assert status(box)["agentId"] == before
    for each in (box, twin):  # one registration in a start, by the supervisor; none since
        assert sentences.REGISTERED_WITH_THE_HUB not in (each.home / "logs" / "control.log").read_text()
    wait_until(lambda: {hub.seen(each)["state"] for each in (before, other)} == {"online"}, "both are online")


def test_the_same_hub_at_another_address_knows_the_machine(hub: Hub) -> None:
    box = hub.agent("box")
    before = hub.seen("box")["agentId"]
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    list(hub.client.execute("work", steps({"write": "claude.txt", "text": "an hour's work"}, {"say": "done"})))
    box.stop()
    box.start(OCC_REMOTE_URL=f"http://localhost:{hub.url.rpartition(':')[2]}")
    assert status(box)["agentId"] == before
    assert [each["agentId"] for each in hub.client.call("GET", "/agents")["agents"]] == [before]
    assert output(list(hub.client.execute("work", "and again"))) == "You said: and again"
    held = io.BytesIO()
    hub.client.archive("work", held)
    assert zipfile.ZipFile(held).read("claude.txt") == b"an hour's work"

"""Workspaces on an agent that hubs sent: whose they are, and that a restored hub takes its own back."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from occ_app.client.agent_client import AgentClient
from occ_app.errors import Refused, RequestError
from occ_app.executions import lifecycle, queries
from occ_app.executions.records import Outcome, Request
from occ_app.hub import health, registrations
from occ_app.workspaces import origin as origins
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.origin import Origin
from occ_worker.relay import sending
from occ_worker.relay.context import RelayContext
from tests.conftest import Occ, make_zip, names, output, shared_agent, steps
from tests.hub_app import HubApp, hub_app
from tests.real_hub import hub_in

HUB, OTHER = f"hub-{'a' * 32}", f"hub-{'b' * 32}"
OLDER, NEWER = "2026-01-01T00:00:00.000Z", "2026-01-02T00:00:00.000Z"
LATEST = "2026-01-03T00:00:00.000Z"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    with shared_agent(tmp_path_factory.mktemp("agent")) as occ:
        yield occ


def sent(agent: Occ, workspace: str, origin: Origin | None, content: str = "hello", policy: str = "overwrite") -> Any:
    headers = None if origin is None else origin.upload()
    return agent.client.upload(workspace, make_zip({"a.txt": content}), policy=policy, headers=headers)


@pytest.mark.parametrize(
    "header",
    [
        f"{HUB} key-ab {'0' * 64}",
        f"{HUB} key-ab {'0' * 63} {OLDER}",
        f"{HUB} key-ab {'0' * 64} now",
        f"{HUB}",
        "hub-1 key-ab",
        f"{HUB} key-ab {'0' * 64} {OLDER} more",
        f"{HUB} key-ab\x0b",
    ],
)
def test_a_malformed_origin_is_refused(header: str) -> None:
    with pytest.raises(RequestError):
        origins.parse(header)


def test_an_origin_survives_its_header_its_row_and_its_record() -> None:
    origin = Origin(HUB, "key-ab12", "0" * 64, OLDER)
    assert origins.parse(origin.upload()[origins.HEADER]) == origin
    assert origins.parse(origin.owner()[origins.HEADER]) == Origin(HUB, "key-ab12")
    assert origins.of_row(origins.stored(origin)) == origin
    assert origins.of_record({"hubId": HUB, "keyId": 7, "zip": "0" * 64, "uploadedAt": OLDER}) is None
    assert origins.parse("") is None


@pytest.mark.parametrize("policy", ["overwrite", "reuse"])
def test_a_workspace_of_a_hub_is_replaced_by_nobody_else(agent: Occ, policy: str) -> None:
    workspace = f"owned-{policy}"
    own = Origin(HUB, "key-ab", "0" * 64, OLDER)
    sent(agent, workspace, own)
    assert agent.client.workspace(workspace)["origin"] == {
        "hubId": HUB,
        "keyId": "key-ab",
        "zip": "0" * 64,
        "uploadedAt": OLDER,
    }
    for other in (None, Origin(OTHER, "key-ab", "0" * 64, OLDER), Origin(HUB, "key-cd", "0" * 64, OLDER)):
        with pytest.raises(Refused) as refused:
            sent(agent, workspace, other, "theirs", policy)
        assert (refused.value.status, refused.value.code) == (409, "WORKSPACE_CONFLICT")
    sent(agent, workspace, Origin(HUB, "key-ab", "1" * 64, NEWER), "newer")
    assert agent.client.workspace(workspace)["origin"]["zip"] == "1" * 64


def test_a_workspace_without_an_origin_gets_that_of_the_next_upload(agent: Occ) -> None:
    sent(agent, "unowned", None)
    assert agent.client.workspace("unowned")["origin"] is None
    sent(agent, "unowned", Origin(HUB, "-", "0" * 64, OLDER))
    assert agent.client.workspace("unowned")["origin"]["keyId"] == "-"


def test_a_prompt_of_a_hub_runs_in_its_own_workspaces_alone(agent: Occ) -> None:
    own = Origin(HUB, "key-ab", "0" * 64, OLDER)
    sent(agent, "prompted", own)

    def execute(execution_id: str, origin: Origin) -> list[Any]:
        body = {"executionId": execution_id, "workspaceId": "prompted", "prompt": "hello"}
        batches = agent.client.batches(execution_id, 0, body, new=True, headers=origin.owner())
        return [event for batch in batches for event in batch]

    for other in (Origin(OTHER, "key-ab"), Origin(HUB, "key-cd")):
        with pytest.raises(Refused) as refused:
            execute("p1", other)
        assert refused.value.code == "WORKSPACE_NOT_FOUND"
    first = execute("p1", own)
    assert first[-1].name == "complete"
    assert execute("p1", own) == first  # its sender gets it again, and nobody else
    with pytest.raises(Refused, match="p1"):
        execute("p1", Origin(OTHER, "key-ab"))


@dataclass
class Restored:
    """A hub whose rows do not know that an agent has one of its workspaces."""

    hub: HubApp
    agent: Occ

    def upload(self, workspace: str, content: str, at: str) -> Origin:
        """Upload to the hub, as if at this time; returns the origin that the upload has."""
        archive = make_zip({"a.txt": content}).getvalue()
        digest = hashlib.sha256(archive).hexdigest()
        (self.hub.config.zips / f"{digest}.zip").write_bytes(archive)
        with self.hub.database.write() as connection:
            connection.execute(
                """
                INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,
                    updated_at, key_id, zip, upload, agent_id)
                VALUES (:id, :id, '', '', 1, 1, '[]', :at, :at, 'key-ab', :zip, 7, 'agent-0')
                """,
                {"id": workspace, "at": at, "zip": digest},
            )
        return Origin(registrations.hub_id(self.hub.database), "key-ab", digest, at)

    def place(self, workspace: str) -> Outcome | None:
        """Have a relay give the workspace to the agent."""
        asked = Request(f"{workspace}-1", workspace, "hello", 60, 60, None, None, None, None, "h", "key-ab")
        execution, _ = lifecycle.create(self.hub.database, asked, max_queue=10)
        context = RelayContext(  # the fields that placing uses
            self.hub.config,
            registrations.hub_id(self.hub.database),
            self.hub.database,
            *([None] * 6),  # type: ignore[arg-type]
        )
        agent = _Named("agent-0", "box")
        client = AgentClient(self.agent.url, self.agent.token)
        try:
            return sending.send_workspace(context, execution, agent, client)  # type: ignore[arg-type]
        finally:
            client.close()

    def placed(self, workspace: str) -> bool:
        placement = workspaces.get(self.hub.database, workspace).placement
        return placement is not None and placement.is_current

    def content(self, workspace: str) -> str:
        path = self.agent.client.workspace(workspace)["path"]
        return (Path(path) / "a.txt").read_text()


@dataclass
class _Named:
    """The fields of an agent that placing uses."""

    agent_id: str
    name: str


@pytest.fixture
def restored(agent: Occ, tmp_path: Path) -> Iterator[Restored]:
    with hub_app(tmp_path) as hub:
        yield Restored(hub, agent)


def worked_on(agent: Occ, workspace: str) -> None:
    """Change a workspace on the agent, as Claude does."""
    (Path(agent.client.workspace(workspace)["path"]) / "a.txt").write_text("an hour's work")


def test_a_restored_hub_takes_a_workspace_of_the_same_upload_back(restored: Restored) -> None:
    origin = restored.upload("back", "first", NEWER)
    sent(restored.agent, "back", origin, "first")
    worked_on(restored.agent, "back")
    assert restored.place("back") is None
    assert restored.placed("back")
    assert restored.content("back") == "an hour's work"
    generation = workspaces.get(restored.hub.database, "back").agent_generation
    assert generation == restored.agent.client.workspace("back")["generation"]


def test_a_newer_upload_of_the_hub_replaces_the_one_that_an_agent_has(restored: Restored) -> None:
    origin = restored.upload("newer", "second", NEWER)
    sent(restored.agent, "newer", Origin(origin.hub_id, origin.key_id, "0" * 64, OLDER), "first")
    assert restored.place("newer") is None
    assert restored.placed("newer")
    assert restored.content("newer") == "second"


@pytest.mark.parametrize("case", ["newer there", "of another hub", "of another key", "of nobody"])
def test_nothing_is_replaced_that_is_newer_or_somebody_else_s(restored: Restored, case: str) -> None:
    workspace = case.replace(" ", "-")
    own = restored.upload(workspace, "mine", NEWER)
    there: dict[str, Origin | None] = {
        "newer there": Origin(own.hub_id, own.key_id, "0" * 64, LATEST),
        "of another hub": Origin(OTHER, own.key_id, own.zip, OLDER),
        "of another key": Origin(own.hub_id, "key-cd", own.zip, OLDER),
        "of nobody": None,
    }
    sent(restored.agent, workspace, there[case], "there")
    outcome = restored.place(workspace)
    assert outcome is not None
    assert outcome.data["code"] == "AGENT_REFUSED"
    assert restored.content(workspace) == "there"


def test_a_hub_restored_from_an_older_copy_goes_on_and_runs_nothing_twice(tmp_path: Path) -> None:
    with hub_in(tmp_path) as hub:
        box = hub.start().agent("box")
        for name in ("used", "new"):
            hub.client.upload(name, make_zip({"a": "a"}))
        list(hub.client.execute("used", "hello", executionId="one"))
        hub.stop()
        copy = tmp_path / "copy"
        shutil.copytree(hub.home, copy, ignore=shutil.ignore_patterns("run"))
        hub.start()
        worked = steps({"write": "claude.txt", "text": "an hour's work"}, {"say": "done"})
        list(hub.client.execute("new", worked, executionId="two"))
        hub.stop()
        shutil.rmtree(hub.home)
        copy.rename(hub.home)
        hub.start()
        again = list(hub.client.execute("new", worked, executionId="two"))  # the copy does not know it
        assert output(again) == "done"
        assert [x["executionId"] for x in box.client.executions()["executions"]] == ["two", "one"]
        assert names(list(hub.client.execute("new", "go on", executionId="three")))[-1] == "complete"
        held = io.BytesIO()
        hub.client.archive("new", held)
        assert b"claude.txt" in held.getvalue()
        assert names(list(hub.client.execute("used", "hello", executionId="four")))[-1] == "complete"
        assert [each["name"] for each in hub.client.call("GET", "/agents")["agents"]] == ["box"]


def test_a_copy_of_a_hub_runs_nothing_that_may_have_run_since(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        assert health.end_copied(hub.config) == []
        for workspace in ("homeless", "at-home"):
            hub.workspace(workspace)
            asked = Request(f"{workspace}-1", workspace, "hello", 60, 60, None, None, None, None, "h")
            lifecycle.create(hub.database, asked, max_queue=10)
        with hub.database.write() as connection:
            connection.execute("UPDATE workspaces SET agent_id = 'agent-0' WHERE workspace_id = 'at-home'")
        assert health.end_copied(hub.config) == []  # a restart
    shutil.copytree(tmp_path / "hub", tmp_path / "copy" / "hub", ignore=shutil.ignore_patterns("run"))
    with hub_app(tmp_path / "copy") as copy:
        [warning] = health.end_copied(copy.config)
        assert "1 executions" in warning
        states = {x.execution_id: (x.state, x.error_code) for x in queries.listing(copy.database)[0]}
        assert states == {"homeless-1": ("failed", "AGENT_LOST"), "at-home-1": ("queued", None)}
        assert health.end_copied(copy.config) == []

"""What programs ask a hub: search, usage and metrics, where a key is told of its own executions and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from occ_app.client.agent_client import AgentClient
from occ_app.errors import Refused
from occ_app.executions import search
from tests.conftest import make_zip, stand_in, wait_until
from tests.real_hub import Hub, hub_in


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, AgentClient, AgentClient]]:
    """A hub with one machine, and two people's clients; each asked for milk in a workspace of their own."""
    with hub_in(tmp_path_factory.mktemp("hub")) as hub:
        hub.start()
        stand_in(hub.home.parent)
        hub.agent("box")
        ann, bob = (hub.client_with(hub.key(name, "client")) for name in ("ann", "bob"))
        for client, name in ((ann, "ann"), (bob, "bob")):
            client.upload(f"of-{name}", make_zip({"a": "b"}))
            events = list(client.execute(f"of-{name}", f"milk for {name}", executionId=name))
            assert events[-1].name == "complete"
        wait_until(lambda: not search.waiting(hub.database), "both to be indexed")
        yield hub, ann, bob


def found(client: AgentClient, query: str) -> list[str]:
    return [result["execution"]["executionId"] for result in client.search(query)["results"]]


def test_a_key_finds_its_own_and_an_admin_s_finds_everything(asked: tuple[Hub, AgentClient, AgentClient]) -> None:
    hub, ann, bob = asked
    assert (found(ann, "milk"), found(bob, "milk"), found(hub.client, "milk")) == (["ann"], ["bob"], ["bob", "ann"])
    assert ann.search("bob") == {"results": [], "next": None, "unindexed": 0}


def test_a_key_is_told_what_its_own_took(asked: tuple[Hub, AgentClient, AgentClient]) -> None:
    hub, ann, _ = asked
    assert [group["name"] for group in ann.usage("key")["groups"]] == ["ann"]
    assert sorted(group["name"] for group in hub.client.usage("key")["groups"]) == ["ann", "bob"]
    (box,) = hub.client.usage("agent")["groups"]
    assert (box["name"], box["usage"]["executions"]) == ("box", 2)
    assert [group["group"] for group in ann.usage("workspace")["groups"]] == ["of-ann"]


def test_metrics_tell_of_everybody_s_executions_and_want_an_admin_s_key(
    asked: tuple[Hub, AgentClient, AgentClient],
) -> None:
    hub, ann, _ = asked
    with pytest.raises(Refused) as refused:
        ann.call("GET", "/metrics")
    assert (refused.value.status, refused.value.code) == (403, "FORBIDDEN")
    text = hub.request("GET", "/metrics").data.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    values = {sample.name + "".join(sample.labels.values()): sample.value for sample in samples}
    assert values["occ_executionssucceeded"] == values["occ_run_seconds_count"] == 2
    assert values["occ_refusals_totalFORBIDDEN"] >= 1

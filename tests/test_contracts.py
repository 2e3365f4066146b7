"""Contracts above the views: what they check before a view runs, and that no endpoint goes without one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from occ_app import hub_wsgi, wsgi
from occ_app.config import config
from occ_app.config.config import Config
from occ_app.home import state
from occ_app.web.contracts import contract_of
from tests.databases import make_database

# OpenAPI cannot describe WebSockets; what Slack sends is of another API.
WITHOUT_CONTRACT = {"websocket", "link", "slack_requests.receive"}


def served(settings: Config, make_app: Callable[[Any], Flask]) -> Iterator[Flask]:
    """The application of these settings, with a database and a token."""
    settings.make_folders()
    state.ensure(settings.state)
    make_database(settings.database)
    app = make_app(settings)
    yield app
    app.occ_on_stop()  # type: ignore[attr-defined]  # the server calls it
    app.occ_on_end()  # type: ignore[attr-defined]  # the server calls it


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Flask]:
    settings = config.load_hub({"OCC_HUB_HOME": str(tmp_path / "hub"), "HOME": str(tmp_path)})
    yield from served(settings, hub_wsgi.make_app)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Flask]:
    yield from served(config.load({"OCC_HOME": str(tmp_path / "agent"), "HOME": str(tmp_path)}), wsgi.make_app)


def token(app: Flask) -> dict[str, str]:
    known = state.load(app.extensions["occ"].config.state)
    assert known is not None
    return {"Authorization": f"Bearer {known.token}"}


@pytest.mark.parametrize("name", ["agent", "hub"])
def test_every_endpoint_of_the_api_has_a_contract(name: str, request: pytest.FixtureRequest) -> None:
    app: Flask = request.getfixturevalue(name)
    without = {
        rule.endpoint
        for rule in app.url_map.iter_rules()
        if not rule.endpoint.startswith("pages.") and contract_of(app.view_functions[rule.endpoint]) is None
    }
    assert without <= WITHOUT_CONTRACT


@pytest.mark.parametrize("name", ["agent", "hub"])
def test_the_document_can_be_read_by_generators(name: str, request: pytest.FixtureRequest) -> None:
    app: Flask = request.getfixturevalue(name)
    document = app.test_client().get("/openapi.json", headers=token(app)).get_json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            in_path = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
            assert set(re.findall(r"{(.*?)}", path)) == in_path, path
            for reply in operation["responses"].values():
                for kind, content in reply.get("content", {}).items():
                    assert not kind.startswith("text/") or content["schema"].get("format") != "binary", path


@pytest.mark.parametrize("name", ["agent", "hub"])
def test_the_summary_of_an_operation_is_one_line(name: str, request: pytest.FixtureRequest) -> None:
    app: Flask = request.getfixturevalue(name)
    document = app.test_client().get("/openapi.json", headers=token(app)).get_json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert all(0 < len(operation["summary"]) <= 80 and "\n" not in operation["summary"] for operation in operations)
    assert any(operation.get("description") for operation in operations)


def test_the_document_is_made_once(agent: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making it takes so long that calls for it would keep everybody waiting."""
    first = agent.test_client().get("/openapi.json", headers=token(agent))
    assert first.status_code == 200
    monkeypatch.setattr("occ_app.api.openapi.document", None)
    assert agent.test_client().get("/openapi.json", headers=token(agent)).json == first.json


def test_an_endpoint_without_a_query_refuses_one(agent: Flask) -> None:
    answer = agent.test_client().get("/health?verbose=1", headers=token(agent))
    assert (answer.status_code, answer.get_json()["code"]) == (422, "INVALID_REQUEST")


def test_an_endpoint_for_agents_that_authenticates_nobody_is_closed_to_agents(hub: Flask) -> None:
    """An endpoint under /api/agents/ whose contract has no check of its own requires a client's secret."""
    reached = []
    hub.add_url_rule("/api/agents/forgotten", view_func=lambda: reached.append(1) or "open", endpoint="forgotten")
    for headers in ({}, {"Authorization": "Bearer occ_made-up"}):
        assert hub.test_client().get("/api/agents/forgotten", headers=headers).status_code == 401
    assert reached == []


def test_credentials_of_agents_are_checked_before_the_body_is_read(hub: Flask) -> None:
    for path in ("/api/agents/register", "/api/agents/agent-0/heartbeat"):
        answer = hub.test_client().post(path, data="not json", headers={"Authorization": "Bearer occ_made-up"})
        assert answer.status_code == 401

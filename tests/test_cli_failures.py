"""Failures as the real CLI reports them: a model that cannot be reached, cuts its answer, or has a limit of usage.

The CLI runs with OCC's own arguments and environment, without a daemon; OCC's translator reads its lines.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from occ_app.executions.records import Outcome
from occ_worker.execution.translator import Translator
from tests.conftest import free_port_number
from tests.model_api import FAKE_KEY
from tests.test_cli_doors import Cli, cli
from tests.test_real_cli import reply

__all__ = ["cli"]  # a fixture

pytestmark = pytest.mark.real_cli


def translated(lines: list[dict[str, Any]]) -> tuple[list[tuple[str, dict[str, Any]]], Outcome]:
    """Return the events of the lines and their outcome."""
    translator = Translator()
    events = [(name, json.loads(data)) for line in lines for name, data in translator.events(json.dumps(line).encode())]
    outcome = translator.outcome()
    assert outcome is not None
    return events, outcome


def said(events: list[tuple[str, dict[str, Any]]]) -> str:
    return "".join(data["chunk"] for name, data in events if name == "output")


def test_a_model_that_cannot_be_reached_has_its_code(cli: Cli) -> None:
    reach = {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{free_port_number()}", "ANTHROPIC_API_KEY": FAKE_KEY}
    events, outcome = translated(cli.run("Hello.", reach=reach))
    assert outcome.data["code"] == "API_UNAVAILABLE", outcome
    assert said(events) == ""


CUT = "Talk. " + reply({"text": "Only once.", "hang": "cut"})


def test_an_answer_that_is_cut_in_the_middle_is_an_error_and_its_text_never_comes_twice(cli: Cli) -> None:
    events, outcome = translated(cli.run(CUT))
    assert outcome.data["code"] == "API_UNAVAILABLE", outcome
    assert said(events) in ("", "Only once.")  # a newer CLI may see the end before it prints the text
    assert all(request["body"]["stream"] for request in cli.model.requests() if request["path"] == "/v1/messages")


def test_it_would_be_asked_for_again_without_the_variable(cli: Cli) -> None:
    cli.run(CUT, without=["CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK"])
    asked = [request["body"] for request in cli.model.requests() if request["path"] == "/v1/messages"]
    assert any(not body.get("stream") for body in asked)


def test_the_usage_limit_of_a_login_has_its_code_and_is_not_tried_again(cli: Cli) -> None:
    headers = {"status": "rejected", "reset": int(time.time()) + 3600, "representative-claim": "five_hour"}
    named = {f"anthropic-ratelimit-unified-{name}": value for name, value in headers.items()}
    prompt = "Hello. " + reply({"error": 429, "headers": named})
    events, outcome = translated(cli.run(prompt, reach={"CLAUDE_CODE_OAUTH_TOKEN": FAKE_KEY}))
    assert outcome.data["code"] == "RATE_LIMITED", outcome
    assert [data["state"] for name, data in events if name == "status"][-1:] == ["waiting"]
    assert len([request for request in cli.model.requests() if request["path"] == "/v1/messages"]) == 1

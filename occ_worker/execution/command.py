"""The command line of the Claude Code CLI. translator.py reads its output.

docs/claude-cli.md names the versions this was measured on, and gives the findings behind each choice.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from occ_app.claude import mcp_servers
from occ_app.config.config import DEFAULT_TOOLS, Config
from occ_app.executions.attachments import PDF, TEXT, Attachment
from occ_app.executions.records import Execution
from occ_worker.execution.resumable import FRESH, Resumable

# Unset for versions that know CLAUDE_CODE_DISABLE_FILE_MENTIONS: it also takes away the CLI's own reminders.
ALL_ATTACHMENTS = "CLAUDE_CODE_DISABLE_ATTACHMENTS"

# Unset for trusted workspaces: the CLI's memory goes into later requests, and a prompt can write it.
NO_AUTO_MEMORY = "CLAUDE_CODE_DISABLE_AUTO_MEMORY"

_FIXED_ENVIRONMENT = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    # Ten tries, the CLI's own default, are three minutes of silence on a wrong key.
    "CLAUDE_CODE_MAX_RETRIES": "2",
    # Otherwise a reply cut in the middle is silently asked for again, and its text comes twice.
    "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
    # No `git status` at start: a workspace's .git/config could make it run a program.
    "CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS": "1",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.fsmonitor",
    "GIT_CONFIG_VALUE_0": "false",
    # Otherwise an MCP server that never answers keeps the first prompt waiting for 30 s.
    "MCP_TIMEOUT": str(mcp_servers.CONNECT_SECONDS * 1000),
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    # Otherwise a `.claude/scheduled_tasks.json` in the workspace runs prompts that nobody sent.
    "CLAUDE_CODE_DISABLE_CRON": "1",
    # Otherwise "@/etc/hostname" in a prompt attaches that file, unasked and from outside the workspace too.
    "CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1",
    ALL_ATTACHMENTS: "1",
    NO_AUTO_MEMORY: "1",
}
# In plan and auto mode the CLI would read outside the workspace without asking.
_LEAST_BUDGET = 0.000001
# A CLI that died before it had deferred a call asks the model once more, instead of waiting for a prompt.
RESUME_INTERRUPTED = {"CLAUDE_CODE_RESUME_INTERRUPTED_TURN": "1"}
_SETTINGS = '{"permissions":{"disableAutoMode":"disable"}}'
_UNREAD = ("--setting-sources", "user", "--strict-mcp-config")
_ASKING = ("--permission-prompt-tool", "stdio")
AWAIT_CLAIM = "--await-claim"


def command(
    path: str,
    execution: Execution,
    memory: Path | None,
    config: Config,
    resumable: Resumable = FRESH,
    *,
    trusted: bool = False,
    servers: Path | None = None,
) -> list[str]:
    """Return the argv for one execution.

    The prompt is not in it: it goes to stdin, where nothing can take it for a flag. `trusted`: the workspace's
    settings, hooks and MCP servers count. `resumable` may name a parked call to resume. `servers` is the file of the
    operator's MCP servers.
    """
    asks = execution.permissions != "edit" or resumable.parked is not None
    mode = _mode(execution.permissions)
    settings, session_id = _SETTINGS, execution.resume_session_id
    tools = _tools(execution.permissions, config)
    if resumable.parked is not None:
        # Only in a mode that grants nothing, and with a rule that asks: the CLI may judge the call before OCC's hook.
        mode = "plan" if mode == "plan" else "default"
        parked = resumable.parked.approval.tool
        asked = sorted({*tools, parked} - set(DEFAULT_TOOLS) | {parked})
        tools = tools if parked in tools or parked.startswith("mcp__") else (*tools, parked)  # its answer comes first
        settings = json.dumps({"permissions": {"disableAutoMode": "disable", "ask": asked}})
        session_id = execution.session_id
    argv = _common(path, tools, mode, settings)
    if not trusted:
        # The folder is data: its settings, hooks and MCP servers stay unread.
        argv += _UNREAD
    if asks:
        # No call is granted by a flag: OCC's hook answers every one.
        argv += _ASKING
    if servers is not None:
        argv += ["--mcp-config", str(servers)]
    if execution.requested_model is not None:
        argv += ["--model", execution.requested_model]
    if execution.max_turns is not None:
        # At least 1: for the CLI 0 is no limit.
        argv += ["--max-turns", str(max(1, execution.max_turns - resumable.spent.turns))]
    if execution.max_budget_usd is not None:
        argv += ["--max-budget-usd", str(max(_LEAST_BUDGET, execution.max_budget_usd - resumable.spent.cost_usd))]
    if session_id is not None:
        argv += ["--resume", session_id]
    if resumable.parked is not None:
        argv += ["--await-initialize"]  # else the call may be judged before OCC's hook is there
    else:
        argv += ["--fork-session"] if execution.fork else []
        argv += ["--resume-session-at", execution.resume_at] if execution.resume_at is not None else []
    if memory is not None:
        argv += ["--append-system-prompt-file", str(memory)]
    return argv


def plain_command(path: str, permissions: str, config: Config) -> list[str]:
    """Return the argv for a new session with these permissions.

    It is for a workspace that is not trusted, without limits.
    """
    argv = [*_common(path, _tools(permissions, config), _mode(permissions), _SETTINGS), *_UNREAD]
    return argv if permissions == "edit" else [*argv, *_ASKING]


def _mode(permissions: str) -> str:
    return "plan" if permissions == "plan" else "acceptEdits"


def _common(path: str, tools: Sequence[str], mode: str, settings: str) -> list[str]:
    return [
        *(path, "-p", "--verbose", "--output-format", "stream-json", "--input-format", "stream-json"),
        "--include-partial-messages",
        "--disable-slash-commands",
        # --tools restricts; acceptEdits keeps Write and Edit inside the workspace.
        *("--tools", ",".join(tools), "--permission-mode", mode),
        *("--settings", settings),
    ]


def _tools(permissions: str, config: Config) -> tuple[str, ...]:
    """Return the tools that the CLI offers.

    Tools that rules allow and tools that a person is asked about are among them.
    """
    if permissions == "plan":
        # The CLI keeps a plan to reading; once it is approved, edits inside the workspace follow.
        return (*DEFAULT_TOOLS, "AskUserQuestion", "ExitPlanMode")
    allowed = (rule.tool for rule in config.rules if rule.decision == "allow" and not rule.tool.startswith("mcp__"))
    asked = () if permissions == "edit" else (tool for tool in config.ask_tools if tool != "ExitPlanMode")
    return tuple(dict.fromkeys((*config.tools, *allowed, *asked)))


def environment(config: Config) -> dict[str, str]:
    """Return the CLI's environment.

    It has the operator's variables for reaching the model, and OCC's settings.
    """
    return {**config.cli_environment, **_FIXED_ENVIRONMENT}


def prompt_line(prompt: str, message_id: str | None = None, attachments: Sequence[Attachment] = ()) -> bytes:
    """Return the line of input for a prompt.

    The CLI reports when it takes one with an id.
    """
    if prompt.startswith("/"):
        # Even with --disable-slash-commands the CLI answers "/nosuch" itself; text is meant to reach the model.
        prompt = " " + prompt
    # The mark says that the text is no person's at a terminal: newer versions look for no commands and mentions in it.
    content = [*_blocks(attachments), {"type": "text", "text": prompt}] if attachments else prompt
    message = {"type": "user", "message": {"role": "user", "content": content}, "client_composed": True}
    return json.dumps(message | ({} if message_id is None else {"uuid": message_id})).encode() + b"\n"


def _blocks(attachments: Sequence[Attachment]) -> Iterator[dict[str, Any]]:
    """Yield the parts of a prompt that its attachments are, each after its name."""
    for each in attachments:
        if each.media_type == TEXT:
            yield {"type": "text", "text": f"Attached file {each.name}:\n\n{each.data.decode()}"}
            continue
        kind = "document" if each.media_type == PDF else "image"
        source = {"type": "base64", "media_type": each.media_type, "data": base64.b64encode(each.data).decode()}
        yield {"type": "text", "text": f"Attached file {each.name}:"}
        yield {"type": kind, "source": source}


def claim_line(request_id: str, workspace: Path, memory: str) -> bytes:
    """Return the control request that gives a spare its workspace and memory."""
    request: dict[str, object] = {"subtype": "claim_session", "cwd": str(workspace), "include_initialize": False}
    if memory:
        request["append_system_prompt"] = memory
    return _control_line(request_id, request)


def model_line(request_id: str, model: str) -> bytes:
    """Return the control request that sets the model of a session."""
    return _control_line(request_id, {"subtype": "set_model", "model": model})


def mode_line(request_id: str) -> bytes:
    """Return the control request that sets the mode of a run that may edit."""
    return _control_line(request_id, {"subtype": "set_permission_mode", "mode": "acceptEdits"})


def _control_line(request_id: str, request: Mapping[str, object]) -> bytes:
    return json.dumps({"type": "control_request", "request_id": request_id, "request": request}).encode() + b"\n"


def withdrawal_line(message_id: str) -> bytes:
    """Return the control request that takes a text back, unless the CLI has taken it."""
    return _control_line(message_id, {"subtype": "cancel_async_message", "message_uuid": message_id})


# Texts that wait in the CLI for the next turn are dropped, which would run after the interrupt otherwise.
INTERRUPT = (
    b'{"type":"control_request","request_id":"occ-interrupt","request":{"subtype":"interrupt","cancel_queued":true}}\n'
)

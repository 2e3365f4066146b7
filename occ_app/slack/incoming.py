"""Slack's payloads as values: a message, command, click or submitted dialog."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import unescape
from typing import Any

_PRIVATE = ("im", "group", "mpim")


@dataclass(frozen=True)
class File:
    """A file in a message; `size` is in bytes, as Slack reports it."""

    name: str
    url: str
    size: int


@dataclass(frozen=True)
class Incoming:
    """A person's message, command, click or submitted dialog.

    `thread` is the ts of the thread's first message, which may be the message itself. `private` is whether only
    members see the channel, None where Slack does not say. `value` is that of a clicked button, or the metadata of a
    dialog; `fields` are the values in a dialog, by the ids of their blocks.
    """

    kind: str  # message, command, click, dialog
    team: str
    user: str
    channel: str
    ts: str
    thread: str
    text: str
    mentions: bool = False
    replies: bool = False
    direct: bool = False
    private: bool | None = None
    shared: bool = False
    value: str = ""
    action: str = ""
    user_name: str = ""
    trigger: str = ""  # opens a dialog; valid for three seconds
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[File, ...] = ()

    @property
    def execution_id(self) -> str:
        """Return the id of the run that this message starts.

        It is the same however often the message arrives, and as whichever event.
        """
        digest = hashlib.sha256(f"{self.team} {self.channel} {self.ts}".encode()).hexdigest()
        return f"slack-{digest[:20]}"


def key_of(kind: str, payload: Mapping[str, Any], envelope_id: str) -> str:
    """Return the key that identifies a payload when Slack sends it again."""
    if kind == "events_api" and payload.get("event_id"):
        return f"event {payload['event_id']}"
    if kind == "slash_commands" and payload.get("trigger_id"):
        return f"command {payload['trigger_id']}"
    actions = payload.get("actions")
    if kind == "interactive" and isinstance(actions, list) and actions and isinstance(actions[0], dict):
        user = _text(_map(payload.get("user")).get("id"))
        return f"click {user} {_text(actions[0].get('action_id'))} {_text(actions[0].get('action_ts'))}"
    view = _map(payload.get("view"))
    if kind == "interactive" and payload.get("type") == "view_submission" and view.get("id"):
        return f"dialog {_text(view.get('id'))} {_text(view.get('hash'))}"
    return f"envelope {envelope_id}"


def parsed(kind: str, payload: Mapping[str, Any], bot_user: str) -> Incoming | None:
    """Return a person's action; None for others, such as bots' messages and edits."""
    if kind == "events_api":
        return _message(payload, bot_user)
    if kind == "slash_commands":
        return Incoming(
            kind="command",
            team=_text(payload.get("team_id")),
            user=_text(payload.get("user_id")),
            channel=_text(payload.get("channel_id")),
            ts="",
            thread="",
            text=_text(payload.get("text")).strip(),
            direct=_text(payload.get("channel_name")) == "directmessage",
            shared=payload.get("is_ext_shared_channel") is True,
            user_name=_text(payload.get("user_name")),
            trigger=_text(payload.get("trigger_id")),
        )
    if kind == "interactive" and payload.get("type") == "view_submission":
        return _dialog(payload)
    return _click(payload) if kind == "interactive" and payload.get("type") == "block_actions" else None


def _message(payload: Mapping[str, Any], bot_user: str) -> Incoming | None:
    event = _map(payload.get("event"))
    if event.get("type") not in ("app_mention", "message") or event.get("bot_id"):
        return None
    if event.get("subtype") not in (None, "", "file_share"):
        return None
    user, text, ts = _text(event.get("user")), _text(event.get("text")), _text(event.get("ts"))
    if not user or user == bot_user or not ts:
        return None
    team = _text(payload.get("team_id"))
    kind = event.get("channel_type")
    return Incoming(
        kind="message",
        # In a shared channel, a person from another Slack workspace has that workspace's id.
        team=_text(event.get("user_team")) or _text(event.get("team")) or team,
        user=user,
        channel=_text(event.get("channel")),
        ts=ts,
        thread=_text(event.get("thread_ts")) or ts,
        text=plain(text.replace(f"<@{bot_user}>", " ")),
        mentions=f"<@{bot_user}>" in text,
        replies=bool(event.get("thread_ts")) and event.get("thread_ts") != ts,
        direct=kind == "im",
        private=None if kind is None else kind in _PRIVATE,
        shared=payload.get("is_ext_shared_channel") is True,
        files=_files(event.get("files")),
    )


def _files(given: object) -> tuple[File, ...]:
    """Return the files of a message.

    A file without an address in the payload has an empty one.
    """
    found = [_map(each) for each in given] if isinstance(given, list) else []
    return tuple(
        File(
            _text(each.get("name")),
            _text(each.get("url_private_download")) or _text(each.get("url_private")),
            size if isinstance(size := each.get("size"), int) else 0,
        )
        for each in found
    )


def _click(payload: Mapping[str, Any]) -> Incoming | None:
    actions, container = payload.get("actions"), _map(payload.get("container"))
    if not isinstance(actions, list) or not actions or not isinstance(actions[0], dict):
        return None
    user, ts = _map(payload.get("user")), _text(container.get("message_ts"))
    return Incoming(
        kind="click",
        team=_text(user.get("team_id")) or _text(_map(payload.get("team")).get("id")),
        user=_text(user.get("id")),
        channel=_text(container.get("channel_id")),
        ts=ts,
        thread=_text(container.get("thread_ts")) or ts,
        text="",
        value=_text(actions[0].get("value")),
        action=_text(actions[0].get("action_id")),
        trigger=_text(payload.get("trigger_id")),
    )


def _dialog(payload: Mapping[str, Any]) -> Incoming | None:
    """Return a submitted dialog, whose metadata names its channel."""
    view, user = _map(payload.get("view")), _map(payload.get("user"))
    try:
        metadata = _map(json.loads(_text(view.get("private_metadata"))))
    except ValueError:
        return None
    blocks = _map(_map(view.get("state")).get("values"))
    fields = {
        block_id: _chosen(_map(element)) for block_id, block in blocks.items() for element in _map(block).values()
    }
    return Incoming(
        kind="dialog",
        team=_text(user.get("team_id")) or _text(_map(payload.get("team")).get("id")),
        user=_text(user.get("id")),
        channel=_text(metadata.get("channel")),
        ts=f"dialog {_text(view.get('id'))}",
        thread="",
        text="",
        value=json.dumps(metadata),
        action=_text(view.get("callback_id")),
        fields=fields,
    )


def _chosen(element: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the values of a dialog's element: its text, or its selected options."""
    several = element.get("selected_options")
    options = several if isinstance(several, list) else [element.get("selected_option")]
    found = [_text(element.get("value")).strip(), *(_text(_map(option).get("value")) for option in options)]
    return tuple(value for value in found if value)


def plain(text: str) -> str:
    """Return the text as the person wrote it.

    Slack escapes text, and puts addresses and names into <>.
    """
    text = re.sub(r"<(?:[^<>|]*)\|([^<>]*)>", r"\1", text)
    return unescape(re.sub(r"<([^<>]*)>", r"\1", text)).strip()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

"""The manifest of the Slack app, to be pasted at https://api.slack.com/apps."""

from __future__ import annotations

from typing import Any

REQUESTS = "/slack/requests"  # where a hub receives Slack's requests
SCOPES = (
    *("app_mentions:read", "channels:history", "groups:history", "im:history", "mpim:history"),
    *("channels:read", "groups:read", "mpim:read"),
    *("chat:write", "commands", "files:read", "files:write", "im:write"),
)
_EVENTS = ("app_mention", "message.channels", "message.groups", "message.im", "message.mpim")


def manifest(request_url: str | None = None) -> dict[str, Any]:
    """Return the manifest: one command, and only the scopes that the hub uses.

    Slack sends its requests to `request_url`, or over Socket Mode without one.
    """
    url = {} if request_url is None else {"url": request_url}
    sent = {} if request_url is None else {"request_url": request_url}
    return {
        "display_information": {"name": "OCC", "description": "Runs Claude Code on your machines."},
        "features": {
            "bot_user": {"display_name": "occ", "always_online": True},
            "app_home": {"messages_tab_enabled": True, "messages_tab_read_only_enabled": False},
            "slash_commands": [
                {
                    **url,
                    "command": "/occ",
                    "description": "Start a task, choose a workspace, log in, help",
                    "usage_hint": "[use NAME]",
                }
            ],
        },
        "oauth_config": {"scopes": {"bot": list(SCOPES)}},
        "settings": {
            "event_subscriptions": {**sent, "bot_events": list(_EVENTS)},
            "interactivity": {**sent, "is_enabled": True},
            "socket_mode_enabled": request_url is None,
            "org_deploy_enabled": False,
            "token_rotation_enabled": False,
        },
    }

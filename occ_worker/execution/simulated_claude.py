"""A simulation of the Claude Code CLI, for `occ demo` on a machine without one.

It asks no model and says so. It implements just enough of stream-json for a demonstration: it reads the prompt, lists
the folder, and answers in small pieces.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

VERSION = "0.0.0-simulated"
_PAUSE_SECONDS = 0.04  # the pace of a model's words, to show how they stream


def main() -> int:
    if "--version" in sys.argv:
        print(f"{VERSION} (simulated)")
        return 0
    line = sys.stdin.readline()
    if not line:
        return 1
    prompt = json.loads(line)["message"]["content"]
    session = _option("--resume") or str(uuid.uuid4())
    begun = time.monotonic()
    _say(
        {
            "type": "system",
            "subtype": "init",
            "session_id": session,
            "model": "simulated",
            "claude_code_version": VERSION,
        }
    )
    text = _answer(prompt)
    message = f"msg_{uuid.uuid4().hex}"
    _stream(session, message, {"type": "message_start", "message": {"id": message}})
    for word in text.split(" "):
        delta = {"type": "text_delta", "text": word + " "}
        _stream(session, message, {"type": "content_block_delta", "index": 0, "delta": delta})
        time.sleep(_PAUSE_SECONDS)
    _stream(session, message, {"type": "content_block_stop", "index": 0})
    _say(
        {
            "type": "result",
            "subtype": "success",
            "is_error": False,
            "result": text,
            "session_id": session,
            "num_turns": 1,
            "duration_ms": round(1000 * (time.monotonic() - begun)),
            "total_cost_usd": 0.0,
            "model_usage_since_last_result": {},
            "usage": {},
            "permission_denials": [],
        }
    )
    sys.stdin.read()
    return 0


def _answer(prompt: str) -> str:
    files = sorted(path.relative_to(".").as_posix() for path in Path().rglob("*") if path.is_file())
    return (
        "This is a simulated answer: no model was asked. "
        f"You sent {len(prompt)} characters, and I run in a workspace with {len(files)} files: {', '.join(files[:8])}. "
        "With Claude Code installed and logged in, its own words would come here, just like this, piece by piece."
    )


def _option(name: str) -> str | None:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None


def _stream(session: str, message: str, event: dict[str, Any]) -> None:
    ids = {"parent_tool_use_id": None, "uuid": str(uuid.uuid4()), "api_message_id": message}
    _say({"type": "stream_event", "event": event, "session_id": session, **ids})


def _say(content: dict[str, Any]) -> None:
    print(json.dumps(content, separators=(",", ":")), flush=True)


if __name__ == "__main__":
    sys.exit(main())

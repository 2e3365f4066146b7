"""The conversation of a chat: its turns, and commands on prompts and changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from occ_app.cli import attached, output
from occ_app.cli.diff import show_patch
from occ_app.client.agent_client import AgentClient
from occ_app.system.foreign_text import visible_line

HELP = """\
Type a prompt. A line that ends with \\ continues on the next one; \"\"\" begins and ends a prompt of several lines.
While Claude works, Ctrl-C lets you send a text to it, or cancel it.

  /attach FILE  send an image, a PDF or a text with the next prompt
  /diff     show the changes of the last turn that was not undone
  /undo     undo the changes of that turn; again for the turn before it
  /rewind N continue N turns back (1 if left out); the files of later turns are restored
  /fork     continue in another conversation that knows this one
  /queue    list the prompts that wait; while Claude works, /queue TEXT adds one
  /resume   let paused prompts run
  /drop ID  drop a prompt that waits
  /cancel   end the turn that runs
  /help     show this
  /quit     leave; the turn that runs goes on (also Ctrl-D)

A prompt that begins with a slash is sent as it is after another slash: //path."""
_SHOWN = 60  # characters of a prompt in a list


class Conversation:
    """One conversation. `last` is the turn to continue, None before the first.

    `undoable` are the turns whose changes are in the workspace, the newest last. The next prompt takes the files of
    `attached` with it, and leaves the conversation as `branch` says.
    """

    def __init__(self, client: AgentClient, last: str | None) -> None:
        self._client = client
        self.last = last
        self.undoable: list[str] = []
        self.attached: list[dict[str, str]] = []
        self.branch: dict[str, Any] = {}

    def take_options(self) -> dict[str, Any]:
        """Return the options of the next prompt, which are used once."""
        options = {"continues": self.last, "attachments": self.attached or None} | self.branch
        self.attached, self.branch = [], {}
        return options

    def turns(self) -> list[dict[str, Any]]:
        """Return the records of its turns, the oldest first."""
        if self.last is None:
            return []
        conversation = self._client.execution(self.last)["conversationId"]
        found: list[dict[str, Any]] = self._client.call("GET", f"/conversations/{quote(conversation, safe='')}")[
            "turns"
        ]
        return found

    def newest_over(self) -> str | None:
        """Return the newest turn that ended; None when there is none."""
        return next((turn["executionId"] for turn in reversed(self.turns()) if turn["finishedAt"]), None)

    def following(self, past: str | None) -> tuple[list[dict[str, Any]], int]:
        """Return the turns to watch after the turn `past`, and the number of paused ones.

        A short turn can begin and end before this list is read, so those that ended after `past` are in it. Without
        `past` all turns are.
        """
        turns = self.turns()
        ids = [turn["executionId"] for turn in turns]
        if past is None or past in ids:
            new = turns[ids.index(past) + 1 if past else 0 :]
        else:  # retention removed it
            new = [turn for turn in turns if not turn["finishedAt"]]
        kept = [turn for turn in new if turn["state"] != "cancelled" or turn["startedAt"]]
        unpaused = [turn for turn in kept if not turn.get("paused")]
        return sorted(unpaused, key=lambda turn: turn["state"] == "queued"), len(kept) - len(unpaused)

    def load_undoable(self) -> None:
        """Take the turns that changed files from the conversation as it is stored."""
        self.undoable = [turn["executionId"] for turn in self.turns() if (turn.get("changes") or {}).get("files")]

    def list_waiting(self) -> None:
        """Print the prompts that wait."""
        waiting = [turn for turn in self.turns() if turn["state"] == "queued"]
        for turn in waiting:
            paused = " (paused)" if turn.get("paused") else ""
            output.echo(f"{turn['executionId']}  {short(turn['prompt'])}{paused}")
        if not waiting:
            output.note("nothing waits")

    def resume(self) -> bool:
        """Let paused prompts run. False when none is paused."""
        turns = self.turns()
        if not any(turn.get("paused") for turn in turns):
            output.note("nothing is paused")
            return False
        self._client.call("POST", f"/conversations/{quote(turns[0]['conversationId'], safe='')}/resume")
        return True

    def drop(self, name: str) -> None:
        """Drop the one prompt that waits and whose id begins with `name`."""
        meant = [
            turn["executionId"]
            for turn in self.turns()
            if name and turn["state"] == "queued" and turn["executionId"].startswith(name)
        ]
        if len(meant) != 1:
            output.note("give the id of one prompt that waits; /queue lists them")
            return
        self._client.cancel(meant[0])
        output.note(f"dropped {meant[0]}")

    def attach(self, name: str) -> None:
        """Send a file with the next prompt."""
        try:
            self.attached += attached.read([Path(name).expanduser()])
        except click.UsageError as error:
            output.note(error.message)
            return
        output.note(f"with the next prompt: {', '.join(visible_line(each['name']) for each in self.attached)}")

    # -- changes

    def diff(self) -> None:
        """Print the changes of the last turn that was not undone."""
        if self.undoable:
            show_patch(self._client, self.undoable[-1])
        else:
            output.note("this chat changed no files")

    def undo(self) -> None:
        """Restore the files from before that turn."""
        if not self.undoable:
            output.note("there is nothing to undo")
            return
        execution_id = self.undoable[-1]
        workspace = self._client.execution(execution_id)["workspaceId"]
        body = {"executionId": execution_id, "to": "start", "force": False}
        reply = self._client.call("POST", f"/workspaces/{quote(workspace, safe='')}/restore", body)
        self.undoable.pop()
        output.note(f"files restored: {reply['files']}; Claude does not know of it, so say it in your next prompt")

    def fork(self) -> None:
        """Have the next prompt begin another conversation."""
        if self.last is None:
            output.note("there is no conversation yet")
            return
        self.branch["fork"] = True
        output.note("the next prompt begins another conversation")

    def rewind(self, given: str) -> None:
        """Have the next prompt continue `given` turns back, or one."""
        over = [turn for turn in self.turns() if turn["sessionId"] and turn["finishedAt"]]
        back = int(given) if given.isdecimal() and len(given) < 6 else 0 if given else 1
        if not 0 < back < len(over):
            output.note(
                f"give a number of turns from 1 to {len(over) - 1}" if len(over) > 1 else "there is no turn before"
            )
            return
        turn = over[-1 - back]
        self.branch["rewindTo"] = turn["executionId"]
        output.note(f"the next prompt continues after: {short(turn['prompt'])}")


def short(text: str | None) -> str:
    """Return a prompt as one line of a list."""
    line = visible_line(" ".join((text or "").split()))
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"

"""The session of `occ chat`: turns, their output, and slash commands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote

import click

from occ_app import errors
from occ_app.cli import approval_prompts, output, transcript
from occ_app.cli.chat_conversation import HELP, Conversation, short
from occ_app.cli.diff import changes_of, show_sums
from occ_app.cli.run_watch import reporting_waits
from occ_app.client.agent_client import AgentClient
from occ_app.client.results import Changes
from occ_app.client.sse import StreamEvent
from occ_app.system.foreign_text import visible_line
from occ_app.system.short_ids import new_execution_id

_LOWER = {  # the permissions that a chat gets where `ask` is not allowed
    "plan": "only plans are allowed here: Claude reads, changes nothing, and asks you about its plan",
    "edit": "only the editing of files is allowed here: Claude asks you about no other tool",
}
_WORKING = "Claude goes on. Send it a text, or /cancel, /queue TEXT, /quit; an empty line watches on."


class Prompts(Protocol):
    """Where the prompts of a person come from."""

    def text(self, prompt: str) -> str | None:
        """Return the next prompt; None when there are no more."""
        ...


class Place(Protocol):
    """The workspace of a chat; it may be sent with the first prompt."""

    def workspace(self) -> str:
        """Return the id of the workspace, which is made now if it is not there yet."""
        ...

    def accepted(self) -> None:
        """Note that the first prompt was accepted."""

    def ended(self, final: StreamEvent | None, changes: Changes | None) -> None:
        """Note the end of a turn."""


class Left(Exception):
    """The person left the chat."""


class Chat:
    """One chat; `options` are those of each turn, `last` is the turn to continue.

    `placement` are the options of the first turn, which decide where the conversation runs.
    """

    def __init__(
        self,
        client: AgentClient,
        prompts: Prompts,
        place: Place,
        options: dict[str, Any],
        last: str | None = None,
        placement: Mapping[str, Any] | None = None,
    ) -> None:
        self._client = client
        self._prompts = prompts
        self._place = place
        self._options = options
        self._placement = placement or {}
        self._conversation = conversation = Conversation(client, last)
        self._lowers = "permissions" not in options  # nobody chose them
        self._seen = 0  # the newest event that was printed
        self._past: str | None = None  # the newest turn that needs no watching any more
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: output.echo(HELP),
            "/attach": conversation.attach,
            "/diff": lambda _: conversation.diff(),
            "/fork": lambda _: conversation.fork(),
            "/rewind": conversation.rewind,
            "/undo": lambda _: conversation.undo(),
            "/queue": lambda _: conversation.list_waiting(),
            "/resume": lambda _: self._resume(),
            "/drop": conversation.drop,
            "/cancel": lambda _: output.note("nothing runs; /queue lists the prompts that wait"),
            "/quit": self._leave,
            "/exit": self._leave,
        }

    @property
    def last(self) -> str | None:
        """The id of the newest turn."""
        return self._conversation.last

    def run(self) -> None:
        """Read prompts and print answers until the person leaves."""
        with contextlib.suppress(Left):
            if self._conversation.last is not None:
                self._conversation.load_undoable()
                self._past = self._conversation.newest_over()
                self._watch_waiting()
            while True:
                try:
                    text = self._prompts.text("> ")
                except KeyboardInterrupt:
                    output.note("\n/quit or Ctrl-D leaves")
                    continue
                if text is None:
                    return
                self._answer(text)

    def _answer(self, text: str) -> None:
        """Obey a command, or send a prompt; a refusal is printed."""
        name, _, rest = text.strip().partition(" ")
        try:
            if not name:
                return
            if name in self._commands:
                self._commands[name](rest.strip())
            elif name.startswith("/") and not name.startswith("//"):
                output.note(f"there is no command {visible_line(name)}; /help lists them")
            else:
                self._say(text.replace("//", "/", 1) if name.startswith("//") else text)
        except (errors.Refused, errors.NotFound, errors.InvalidRequest) as refusal:
            output.echo(f"occ: {refusal}", err=True)

    # -- turns

    def _say(self, text: str) -> None:
        execution_id, first = new_execution_id(), self._conversation.last is None
        workspace = self._place.workspace() if first else None
        names = {"executionId": execution_id, **(self._placement if first else {}), **self._conversation.take_options()}
        events = self._begun(workspace, text, names)
        self._seen = 0
        self._watch(execution_id, events)
        self._watch_waiting()

    def _begun(self, workspace: str | None, text: str, names: dict[str, Any]) -> Iterator[StreamEvent]:
        """Yield the events of a new turn, with `ask` or the most that is allowed."""
        names = {name: value for name, value in names.items() if value is not None}
        if self._lowers:
            try:
                yield from self._started(
                    self._client.execute(workspace, text, permissions="ask", **names, **self._options)
                )
                return
            except errors.Refused as refusal:
                if refusal.code == "PERMISSION_CEILING":
                    self._options["permissions"] = refusal.details["ceiling"]
                elif "permissions" not in refusal.details:
                    raise
            self._lowers = False
            output.note(_LOWER.get(self._options.get("permissions", ""), _LOWER["edit"]))
        yield from self._started(self._client.execute(workspace, text, **names, **self._options))

    def _started(self, events: Iterator[StreamEvent]) -> Iterator[StreamEvent]:
        for index, event in enumerate(events):
            if index == 0:
                self._place.accepted()
            yield event

    def _watch(self, execution_id: str, events: Iterator[StreamEvent]) -> None:
        """Print a turn to its end; Ctrl-C asks for a text or a command. Raises Left."""
        while True:
            try:
                # An event counts as seen before the person is asked about it.
                shown = self._counted(execution_id, approval_prompts.asking(self._client, events, here=True))
                with reporting_waits(self._client, execution_id):
                    final = transcript.print_events(shown, as_json=False, waiting="waiting for the answer")
                break
            except (KeyboardInterrupt, click.Abort):
                if self._conversation.last != execution_id:  # it was not accepted yet
                    self._check_accepted(execution_id)
                self._interrupted(execution_id)
                events = self._client.events(execution_id, after=self._seen)
        self._end(execution_id, final)

    def _counted(self, execution_id: str, events: Iterator[StreamEvent]) -> Iterator[StreamEvent]:
        for event in events:
            self._conversation.last = execution_id
            yield event
            self._seen = max(self._seen, event.seq)

    def _check_accepted(self, execution_id: str) -> None:
        """Raise Refused when the prompt did not arrive, so that nothing runs."""
        self._client.execution(execution_id)
        self._conversation.last = execution_id

    def _end(self, execution_id: str, final: StreamEvent | None) -> None:
        self._past = execution_id
        succeeded = final is not None and final.name == "complete"
        changes = changes_of(self._client, execution_id, succeeded=succeeded)
        self._place.ended(final, changes)
        output.outcome(final)
        record = None
        with contextlib.suppress(errors.OCCError):
            record = self._client.execution(execution_id)
        output.summary(final, record)
        if changes is not None and changes.entries:
            self._conversation.undoable.append(execution_id)
            show_sums(changes)

    def _interrupted(self, execution_id: str) -> None:
        """Read texts and commands for the running turn until an empty line. Raises Left."""
        output.note(f"\n{_WORKING}")
        while True:
            try:
                text = self._prompts.text("… > ")
            except KeyboardInterrupt:
                text = None
            command, _, rest = (text or "").strip().partition(" ")
            if text is None or command in ("/quit", "/exit"):
                self._leave("")
            if not command and self._asked_open(execution_id):
                return
            if not command:
                continue
            try:
                self._about_running(execution_id, command, rest.strip(), text or "")
            except errors.Refused as refusal:
                output.echo(f"occ: {refusal}", err=True)
            if command == "/cancel":
                return

    def _asked_open(self, execution_id: str) -> bool:
        """Ask about the calls that wait; False when the person interrupts that."""
        try:
            approval_prompts.ask_open(self._client, execution_id)
        except click.Abort:
            return False
        return True

    def _about_running(self, execution_id: str, command: str, rest: str, text: str) -> None:
        if command == "/cancel":
            self._client.cancel(execution_id)
        elif command == "/queue" and rest:
            self._send(execution_id, rest, "queue")
        elif command in self._commands:
            self._commands[command](rest)
        elif command.startswith("/") and not command.startswith("//"):
            output.note(f"there is no command {visible_line(command)}; /help lists them")
        else:
            self._send(execution_id, text.replace("//", "/", 1) if command.startswith("//") else text, "steer")

    def _send(self, execution_id: str, text: str, delivery: str) -> None:
        path = f"/executions/{quote(execution_id, safe='')}/input"
        body = {"inputId": new_execution_id(), "text": text, "delivery": delivery}
        reply = self._client.call("POST", path, body)
        if reply["delivery"] == "queue":
            reason = f" ({visible_line(reply['reason'])[:-1].lower()})" if reply["reason"] else ""
            output.note(f"it follows this turn as {reply['executionId']}{reason}")
        else:
            output.note("sent; Claude reads it when the tool is done")

    # -- prompts that wait

    def _watch_waiting(self) -> None:
        """Watch the turns that run, wait or ended meanwhile; name the paused ones."""
        while True:
            following, paused = self._conversation.following(self._past)
            if not following:
                if paused:
                    output.note(f"{paused} paused: /resume lets them run, /queue lists them")
                return
            turn = following[0]
            output.note(f"> {short(turn['prompt'])}")
            self._seen = 0
            self._watch(turn["executionId"], self._client.events(turn["executionId"]))

    def _resume(self) -> None:
        if self._conversation.resume():
            self._watch_waiting()

    def _leave(self, _: str) -> None:
        raise Left

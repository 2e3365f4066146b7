"""Tool calls on a page: one summary line each, with readable input and result."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from occ_app.hub.pages import edits, highlight, markdown, terminal
from occ_app.hub.pages.diffs import Diff
from occ_app.hub.pages.filters import beginning
from occ_app.hub.pages.pictures import is_picture
from occ_app.system import foreign_text

_SUBJECTS = ("file_path", "notebook_path", "command", "pattern", "path", "url", "query", "description", "prompt")
_REMARK, _REMARK_END = "<system-reminder>", "</system-reminder>"
_EXIT = re.compile(r"(?:Error: )?Exit code (\d{1,3})\b\s*")
_IMAGE = re.compile(r"^\[image\](?:\n|$)(?:\[Image: source: .*\](?:\n|$))?", re.MULTILINE)  # the CLI's copy of it
_PROMPT = Markup('<span class="prompt-sign">$ </span>')
_TITLES = {"AskUserQuestion": "Question", "ExitPlanMode": "Plan"}
_LISTS = ("TodoWrite", "TaskCreate", "TaskUpdate", "TaskList", "TaskGet")


@dataclass(frozen=True)
class View:
    """A part of an opened call: its kind, a name, and its content.

    `kind` is `diff`, `terminal`, `code`, `prose` or `picture`. The content is HTML, a diff, or the address of a
    picture.
    """

    kind: str
    name: str
    html: Markup
    diff: Diff | None = None
    source: str = ""
    caption: str = ""


@dataclass
class Call:
    """A tool call, as its events describe it.

    `first` is the number of its first event. Times are in milliseconds.
    """

    first: int
    name: str
    given: Any = None
    result: str | None = None
    is_error: bool = False
    cut: bool = False
    parent: str | None = None
    began: int = 0
    ended: int = 0
    progress: str = ""
    inner: list[Call] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)  # the addresses of the pictures in its result
    folder: str = ""
    files: str = ""  # the address of the workspace's files
    over: bool = False  # whether the execution is over, so that no result will come
    asked: bool = False  # a person decides on it, so that nothing of its input may hide

    kind = "tool"

    def plain(self, text: str) -> str:
        """Return a text of the input with its control characters escaped."""
        return foreign_text.revealed(text) if self.asked else foreign_text.visible(text.replace("\r\n", "\n"))

    @property
    def hidden(self) -> bool:
        """Return whether the pinned todo list shows everything about this call."""
        return self.name in _LISTS and not self.is_error

    @property
    def title(self) -> str:
        """Return the tool's name, without the prefix for a tool of an MCP server."""
        name = foreign_text.revealed_line(self.name)
        if name in _TITLES:
            return _TITLES[name]
        return " · ".join(name.split("__")[1:]) if name.startswith("mcp__") and name.count("__") > 1 else name

    @property
    def subject(self) -> str:
        """Return the part of the input that identifies its target, as one line."""
        if isinstance(self.given, Mapping):
            for name in _SUBJECTS:
                if isinstance(self.given.get(name), str):
                    return beginning(self.plain(str(self.given[name])).removeprefix(self.folder), 200)
        return ""

    @property
    def state(self) -> str:
        """Return `busy`, `wrong` or `done`; `lost` when the run ended without a result."""
        if self.result is None:
            return "lost" if self.over else "busy"
        return "wrong" if self.is_error else "done"

    @property
    def facts(self) -> tuple[str, ...]:
        """Return short phrases about the outcome."""
        if self.result is None:
            return (beginning(self.progress, 80) or ("no result" if self.over else "running"),)
        found = [*self._failure(), *(_FACTS[self.name](self) if self.name in _FACTS else ())]
        if self.pictures:
            found.append("picture" if len(self.pictures) == 1 else f"{len(self.pictures)} pictures")
        seconds = (self.ended - self.began) / 1000 if self.began and self.ended else 0
        if seconds >= 1 and self.name not in ("Read", "Edit", "Write"):
            found.append(f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min")
        return tuple(found)

    def _failure(self) -> list[str]:
        if not self.is_error:
            return []
        code = _EXIT.match(self.result or "")
        return [f"exit {code[1]}" if code else "failed"]

    @cached_property
    def diff(self) -> Diff | None:
        """Return the change that an editing tool requested.

        Returns None for another tool, or for input that cannot be read.
        """
        make = edits.MAKERS.get(self.name)
        return make(self.given, self.plain) if make is not None and isinstance(self.given, Mapping) else None

    @property
    def picture(self) -> str:
        """Return the address of the workspace's picture that this call has read.

        Returns an empty string for any other call.
        """
        path = self.given.get("file_path") if isinstance(self.given, Mapping) else None
        if self.name != "Read" or self.shown != "[image]" or not self.files or not isinstance(path, str):
            return ""
        inside = path.removeprefix(self.folder)
        return "" if inside.startswith("/") or not is_picture(inside) else f"{self.files}/content?path={quote(inside)}"

    @property
    def shown(self) -> str:
        """Return the result without the CLI's remarks to the model."""
        text = _without_remarks(self.result or "").strip("\n")
        for _ in self.pictures:  # the result has this word in place of each picture
            text = _IMAGE.sub("", text, count=1).strip("\n")
        return _EXIT.sub("", text, count=1) if self.is_error and self.name == "Bash" else text

    @property
    def views(self) -> list[View]:
        """Return the parts shown when the call is opened."""
        diff = self.diff
        if diff is not None:
            views = [View("diff", "change", Markup(), diff)]
            return [*views, View("code", "result", escape(terminal.plain(self.shown)))] if self.is_error else views
        if self.picture:
            return [View("picture", self.subject, Markup(), source=self.picture, caption="The file as it is now")]
        views = [*_MAKERS.get(self.name, _inputs)(self)]
        if self.result is not None and self.name != "Bash" and (self.shown or not self.is_error):
            language = highlight.language_of(self.subject) if self.name == "Read" and not self.is_error else ""
            text = terminal.plain(self.shown)
            html = highlight.code(text, language) if language else terminal.coloured(self.shown)
            if text or not self.pictures:
                views.append(View("code", "result", html or escape("(nothing)")))
        return [*views, *self._pictures]

    @property
    def whole(self) -> list[View]:
        """Return the views, and each argument that they and the subject leave out."""
        if not isinstance(self.given, Mapping):
            return self.views
        parts = _INPUTS if self.diff is not None else _SHOWN.get(_MAKERS.get(self.name, _inputs), tuple(self.given))
        rest = {name: value for name, value in self.given.items() if name not in parts}
        return [*self.views, *_inputs(replace(self, given=rest), self.subject)]

    @property
    def _pictures(self) -> list[View]:
        named = enumerate(self.pictures, 1)
        return [View("picture", f"{self.title}, picture {number}", Markup(), source=each) for number, each in named]


def prefix(folder: str) -> str:
    """Return the prefix to strip from paths in a workspace's folder.

    Returns an empty string when the folder is not known.
    """
    return folder.rstrip("/") + "/" if folder else ""


def _without_remarks(text: str) -> str:
    kept, place = list[str](), 0
    while (begin := text.find(_REMARK, place)) >= 0 and (end := text.find(_REMARK_END, begin)) >= 0:
        kept.append(text[place:begin].rstrip())
        place = end + len(_REMARK_END)
    return "\n".join([*kept, text[place:].lstrip("\n") if kept else text])


def _terminal(call: Call) -> list[View]:
    command = str(call.given.get("command", "")) if isinstance(call.given, Mapping) else str(call.given)
    html = _PROMPT + highlight.code(call.plain(command), "bash")
    return [View("terminal", "command", html), *_output(call)]


def _output(call: Call) -> list[View]:
    return [View("terminal", "output", terminal.coloured(call.shown))] if call.shown else []


def _nothing(_: Call) -> list[View]:
    return []


def _inputs(call: Call, subject: str | None = None) -> list[View]:
    """Return every argument that `subject`, by default the call's, does not show."""
    given = call.given if isinstance(call.given, Mapping) else {"input": call.given}
    known = call.subject if subject is None else subject
    texts = [(foreign_text.revealed_line(str(name)), _text(value, call)) for name, value in given.items()]
    return [View("code", name, escape(text)) for name, text in texts if text.removeprefix(call.folder) != known]


def _plan(call: Call) -> list[View]:
    plan = call.given.get("plan") if isinstance(call.given, Mapping) else None
    return [View("prose", "plan", markdown.html(call.plain(plan)))] if isinstance(plan, str) else []


def _task(call: Call) -> list[View]:
    prompt = call.given.get("prompt") if isinstance(call.given, Mapping) else None
    return [View("prose", "task", markdown.html(call.plain(prompt)))] if isinstance(prompt, str) else _inputs(call)


def _text(value: Any, call: Call) -> str:
    return call.plain(value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False))


def _count(word: str) -> Callable[[Call], list[str]]:
    def count(call: Call) -> list[str]:
        if call.is_error:
            return []
        if call.picture:
            return ["picture"]
        lines = len(call.shown.splitlines())
        return [f"{lines} {word}{'' if lines == 1 else 's'}"]

    return count


def _sums(call: Call) -> list[str]:
    diff = call.diff
    if diff is None or call.is_error:
        return []
    deleted = [f"\N{MINUS SIGN}{diff.deletions}"] if diff.deletions or call.name != "Write" else []
    return [f"+{diff.additions}", *deleted]


_FACTS: dict[str, Callable[[Call], list[str]]] = {
    "Edit": _sums,
    "MultiEdit": _sums,
    "Write": _sums,
    "NotebookEdit": _sums,
    "Read": _count("line"),
    "Grep": _count("line"),
    "Glob": _count("file"),
}
_MAKERS: dict[str, Callable[[Call], list[View]]] = {
    "Bash": _terminal,
    "Read": _nothing,
    "ExitPlanMode": _plan,
    "Task": _task,
    "Agent": _task,
}
# The arguments that the views of a call show: as a diff, or made by one of the makers.
_INPUTS = ("old_string", "new_string", "edits", "content", "new_source")
_SHOWN: dict[Any, tuple[str, ...]] = {_terminal: ("command",), _nothing: (), _plan: ("plan",), _task: ("prompt",)}

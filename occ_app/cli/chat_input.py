"""Prompts of `occ chat`.

From a terminal with history and several lines; from a pipe, one prompt a line.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from occ_app import errors
from occ_app.cli import output, user_state

_HISTORY = "chat-history.json"
_KEPT_PROMPTS = 500
_KEPT_CHARACTERS = 10_000  # of one prompt
_BLOCK = '"""'  # alone on a line it begins and ends a prompt of several lines


class Reader:
    """A reader of prompts.

    The history is kept for this user alone; without a terminal there is none.
    """

    def __init__(self) -> None:
        self._new: list[str] = []
        self._terminal = output.interactive()

    def text(self, prompt: str) -> str | None:
        """Return a prompt of one line or several; None at the end of the input.

        Raises KeyboardInterrupt.
        """
        line = self._line(prompt)
        if line is None:
            return None
        lines = [line]
        if line.strip() == _BLOCK:
            lines = list(self._until_block_ends())
        while lines and lines[-1].endswith("\\"):
            following = self._line("… ")
            lines[-1] = lines[-1][:-1]
            if following is None:
                break
            lines.append(following)
        text = "\n".join(lines)
        self._remember(text)
        return text

    def _until_block_ends(self) -> Iterator[str]:
        while (line := self._line("… ")) is not None and line.strip() != _BLOCK:
            yield line

    def _line(self, prompt: str) -> str | None:
        if not self._terminal:
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        try:
            return input(prompt)
        except EOFError:
            output.echo()
            return None

    def _remember(self, text: str) -> None:
        if self._terminal and text.strip():
            import readline

            readline.add_history(text)
            self._new.append(text[:_KEPT_CHARACTERS])

    @contextlib.contextmanager
    def history(self) -> Iterator[None]:
        """Load the history of earlier chats, and store the prompts of this one at the end."""
        if not self._terminal:
            yield
            return
        import readline  # `input` edits lines once it is loaded

        readline.set_auto_history(False)  # answers to questions do not belong into it
        with contextlib.suppress(errors.ConfigError):
            for text in _prompts(user_state.read(_HISTORY)):
                readline.add_history(text)
        try:
            yield
        finally:
            try:
                with user_state.changed(_HISTORY) as content:
                    content["prompts"] = [*_prompts(content), *self._new][-_KEPT_PROMPTS:]
            except errors.ConfigError as error:
                output.warn(f"The history of this chat is not stored: {error}")


def _prompts(content: dict[str, object]) -> list[str]:
    found = content.get("prompts")
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []

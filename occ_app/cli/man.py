"""occ man: the manual page, generated from the commands."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from occ_app import __version__
from occ_app.cli import output


@click.command()
def man() -> None:
    """Print the manual page of occ.

    \b
    Example:
      occ man > ~/.local/share/man/man1/occ.1
    """
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)  # noqa: S101 - the group of all commands
    output.raw("\n".join(page(root)) + "\n")


def page(root: click.Group) -> Iterator[str]:
    """Yield the lines of the page in roff."""
    yield f'.TH OCC 1 "" "occ {__version__}" "User commands"'
    yield from (".SH NAME", r"occ \- run Claude Code on this machine from anywhere")
    yield from (".SH SYNOPSIS", ".B occ", r"COMMAND [OPTION]... [ARGUMENT]...", ".SH DESCRIPTION")
    yield from _text(root.help or "")
    yield ".SH COMMANDS"
    for name, command in _commands("occ", root):
        yield from _command(name, command)
    yield ".SH EXIT STATUS"
    yield from _text((root.epilog or "").replace("Exit codes:\n", ""))
    yield from (".SH FILES", ".TP", r"\fI~/.occ\fR, \fI~/.occ\-hub\fR", "The homes of the agent and of the hub.")


def _commands(name: str, group: click.Group) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for child in group.list_commands(context):
        command = group.get_command(context, child)
        if command is not None:
            yield f"{name} {child}", command
            if isinstance(command, click.Group):
                yield from _commands(f"{name} {child}", command)


def _command(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    yield f".SS {_escaped(name)} {_escaped(' '.join(command.collect_usage_pieces(context)))}"
    yield from _text(command.help or "")
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", rf"\fB{_escaped(record[0])}\fR", _escaped(record[1]))


def _text(text: str) -> Iterator[str]:
    """Return a help text; click's mark before a paragraph keeps its lines."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = paragraph.split("\n")
        yield ".PP"
        if lines[0].strip() == "\b":
            yield from (".nf", *map(_escaped, lines[1:]), ".fi")
        else:
            yield from map(_escaped, lines)


def _escaped(text: str) -> str:
    """Text for roff: no escapes, and no request at the start of a line."""
    text = text.replace("…", "...").replace("\\", r"\e").replace("-", r"\-").replace("\b", "")
    text = "".join(letter if letter.isascii() else rf"\[u{ord(letter):04X}]" for letter in text)
    return rf"\&{text}" if text.startswith((".", "'")) else text

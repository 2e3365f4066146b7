"""The help of each command: one line that says what it does, and examples that work."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from occ_app.cli.commands import occ as occ_command


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and all below it, with their full names."""
    yield name, command
    if isinstance(command, click.Group):
        for child, below in children(command).items():
            yield from commands(f"{name} {child}", below)


def children(group: click.Group) -> dict[str, click.Command]:
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


ALL = dict(commands("occ", occ_command))


def examples(command: click.Command) -> list[str]:
    """The commands after `Example:` or `Examples:` in a command's help."""
    _, _, found = inspect.cleandoc(command.help or "").partition("\nExample")
    return [line for line in map(str.strip, found.lstrip("s:").splitlines()) if line.startswith("occ ")]


@pytest.mark.parametrize("name", [name for name in ALL if name != "occ"])
def test_every_command_has_an_example_of_itself(name: str) -> None:
    found = examples(ALL[name])
    assert 1 <= len(found) <= 2
    assert any(name in example for example in found)


@pytest.mark.parametrize("example", [example for command in ALL.values() for example in examples(command)])
def test_every_example_is_understood(example: str) -> None:
    words = shlex.split(example)
    command: click.Command = occ_command
    assert words.pop(0) == "occ"
    while isinstance(command, click.Group) and words and words[0] in children(command):
        command = children(command)[words.pop(0)]
    # It raises for an option that does not exist; files that it names need not.
    given, rest, _ = command.make_parser(click.Context(command)).parse_args(words)
    assert not isinstance(command, click.Group) or not rest
    assert all(given.get(parameter.name or "") for parameter in command.params if parameter.required)


@pytest.mark.parametrize("name", [name for name, command in ALL.items() if isinstance(command, click.Group)])
def test_the_list_of_commands_shows_each_first_line_whole(name: str) -> None:
    shown = CliRunner().invoke(occ_command, [*name.split()[1:], "--help"], terminal_width=80).output
    _, _, shown = shown.partition("\nCommands:\n")
    assert "..." not in shown
    for child, command in children(ALL[name]).items():  # type: ignore[arg-type]  # it is a group
        assert child in shown
        assert (command.help or "").splitlines()[0].rstrip(".") in " ".join(shown.split())


@pytest.mark.parametrize("name", ALL)
def test_no_line_of_a_help_is_wider_than_a_terminal(name: str) -> None:
    result = CliRunner().invoke(occ_command, [*name.split()[1:], "--help"], terminal_width=80)
    assert result.exit_code == 0
    assert max(len(line) for line in result.output.splitlines()) <= 80


def test_the_help_names_the_exit_codes() -> None:
    shown = CliRunner().invoke(occ_command, ["--help"]).output
    for code in ("0", "1", "2", "3", "4", "5", "124", "130"):
        assert f"\n    {code} " in shown, code

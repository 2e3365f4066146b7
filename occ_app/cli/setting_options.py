"""Click's options for the settings of a daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from occ_app.config.options import Option

F = TypeVar("F", bound=Callable[..., Any])


def setting_options(options: tuple[Option, ...]) -> Callable[[F], F]:
    """Give a command these options, in their order.

    Each value arrives under the name of its setting.
    """

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = click.option(
                option.name,
                option.setting,
                metavar=option.metavar,
                help=option.help,
                multiple=option.repeated,
                is_flag=option.switch or None,  # False would make the value optional
            )(command)
        return command

    return decorate

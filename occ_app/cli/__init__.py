"""The `occ` command: its groups, and the one place where errors become a sentence and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback

SECRET_FLAGS = {"--api-key": "OCC_API_KEY", "--token": "OCC_TOKEN"}


def main() -> None:
    """The entry point of `occ`."""
    hide_secrets()
    sys.exit(run(sys.argv[1:]))


def hide_secrets() -> None:
    """Run this command anew without the secrets of its command line, which `ps` shows to everybody."""
    kept, environment = [], dict(os.environ)
    arguments = iter(sys.orig_argv)
    for argument in arguments:
        if argument == "--":
            kept.append(argument)
            break
        flag, equals, value = argument.partition("=")
        if flag not in SECRET_FLAGS:
            kept.append(argument)
            continue
        value = value if equals else next(arguments, "")
        if not value or value.startswith("@"):
            kept.append(argument)
            kept += [] if equals else [value]
            continue
        environment[SECRET_FLAGS[flag]] = value
    kept += arguments
    if environment != dict(os.environ):
        os.execve(sys.executable, kept, environment)  # noqa: S606 - the same command, without its secrets


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code and lets no traceback reach a person."""
    import click

    from occ_app import errors
    from occ_app.cli.commands import occ

    os.umask(0o077)
    try:
        result = occ.main(arguments, prog_name="occ", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except errors.OCCError as error:
        click.echo(f"occ: {error}", err=True)
        return _exit_code(error)
    except OSError as error:
        if error.filename is not None:
            click.echo(f"occ: {error.filename}: {(error.strerror or str(error)).lower()}.", err=True)
        else:
            output_failed(error)
        return 1
    except Exception as error:
        click.echo(f"occ: a fault in OCC itself ({type(error).__name__}: {error}){_keep_traceback()}.", err=True)
        return 1
    return result if isinstance(result, int) else 0


def output_failed(error: OSError) -> None:
    """Say that the output cannot be written, and have Python not complain once more when it closes it."""
    import click

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:  # whoever read it has seen enough
        click.echo(f"occ: the output cannot be written ({(error.strerror or str(error)).lower()}).", err=True)


def _exit_code(error: Exception) -> int:
    from occ_app import errors

    for kind, code in (
        (errors.ConfigError, 2),
        (errors.InvalidRequest, 2),
        (errors.AlreadyRunning, 3),
        (errors.NotRunning, 3),
        (errors.Refused, 4),
        (errors.RequestError, 4),
        (errors.Unreachable, 5),
    ):
        if isinstance(error, kind):
            return code
    return 1


def _keep_traceback() -> str:
    from occ_app.config.config import home_folder

    with contextlib.suppress(OSError):
        path = home_folder() / "logs" / "occ.log"
        with path.open("a") as file:
            traceback.print_exc(file=file)
        return f"; {path} has the details"
    return ""


if __name__ == "__main__":
    main()

"""The `occ` command and its groups.

Only here do errors become a sentence and an exit code.
"""

from __future__ import annotations

import contextlib
import errno
import io
import locale
import os
import sys
import traceback

SECRET_FLAGS = {"--api-key": "OCC_API_KEY", "--token": "OCC_TOKEN"}


def main() -> None:
    """Run `occ`, its entry point."""
    from occ_app.system.inheritance import prepare_command
    from occ_app.system.leaving import leave

    prepare_command()
    _leave_first_folder()
    hide_secrets()
    _encode_output()
    leave(run_line(sys.argv[1:]))


def _leave_first_folder() -> None:
    """Load no module from the folder of the script or, with -m, the current folder.

    It may contain anything.
    """
    if not sys.flags.safe_path and sys.path and not os.path.isdir(os.path.join(sys.path[0], "occ_app")):
        del sys.path[0]


def _encode_output() -> None:
    """Escape the characters that a terminal's own encoding lacks.

    For a terminal that is not UTF-8.
    """
    if locale.getencoding().lower() not in ("utf-8", "ansi_x3.4-1968", "us-ascii"):  # ASCII: no locale is set
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding=locale.getencoding(), errors="backslashreplace")


def hide_secrets() -> None:
    """Run this command again where it must be another process image.

    That is so with secrets on the command line, and in a locale whose file names are not UTF-8. Until Python has
    started nothing can hide a command line from other users, so a secret on it is named in a warning.
    """
    kept, environment, shown = list[str](), dict(os.environ), set[str]()
    utf8 = [] if sys.getfilesystemencoding().lower() == "utf-8" else ["-X", "utf8"]
    arguments = iter([*sys.orig_argv[:1], *utf8, *sys.orig_argv[1:]])
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
        shown.add(flag)
    kept += arguments
    for flag in sorted(shown):
        sys.stderr.write(
            f"warning: other users of this machine can read the value of {flag} while the command starts;"
            f" pass it as {flag} @FILE or in {SECRET_FLAGS[flag]}.\n"
        )
    if utf8 or shown:
        sys.stderr.flush()
        os.execve(sys.executable, kept, environment)  # noqa: S606 - the same command, without its secrets


def run_line(arguments: list[str]) -> int:
    """Run one command line and return the exit code.

    No traceback reaches a person.
    """
    import click

    from occ_app import errors
    from occ_app.cli.commands import occ
    from occ_app.cli.output import echo

    occ.completing = bool(os.environ.get("_OCC_COMPLETE"))  # set by the script of `occ completion`
    try:
        result = occ.main(arguments, prog_name="occ", standalone_mode=False)
    except click.ClickException as error:
        message = io.StringIO()
        error.show(file=message)
        echo(message.getvalue(), nl=False, err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except errors.OCCError as error:
        echo(f"occ: {error}", err=True)
        return _exit_code(error)
    except OSError as error:
        if error.filename is not None:
            echo(f"occ: {error.filename}: {(error.strerror or str(error)).lower()}.", err=True)
        else:
            output_failed(error)
        return 1
    except Exception as error:
        echo(f"occ: a fault in OCC itself ({type(error).__name__}: {error}){_keep_traceback()}.", err=True)
        return 1
    return result if isinstance(result, int) else 0


def output_failed(error: OSError) -> None:
    """Report that the output cannot be written.

    Keeps Python from reporting it once more when it closes the stream.
    """
    from occ_app.cli.output import echo

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:  # the reader closed it early
        echo(f"occ: the output cannot be written ({(error.strerror or str(error)).lower()}).", err=True)


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
    from occ_app.config.homes import home_folder
    from occ_app.errors import ConfigError
    from occ_app.system.foreign_text import visible

    with contextlib.suppress(OSError, ConfigError):
        path = home_folder() / "logs" / "occ.log"
        with path.open("a") as file:
            file.write(visible(traceback.format_exc()))
        return f"; {path} has the details"
    return ""


if __name__ == "__main__":
    main()

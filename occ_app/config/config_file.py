"""The file config.toml in a home."""

from __future__ import annotations

import tomllib
from pathlib import Path

from occ_app.config.homes import Program
from occ_app.errors import ConfigError


def read_toml(path: Path, program: Program) -> dict[str, str]:
    """Return the settings in a file; none when there is no file. Raises ConfigError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; mend it or move it away.") from None
    names = {setting.name for setting in program.settings}
    unknown = sorted(set(content) - names)
    if unknown:
        import difflib  # only to tell of a mistake: every process of a daemon loads this module

        like = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(unknown[0], names, 1))
        raise ConfigError(
            f"{path} has a setting OCC does not know: {unknown[0]}; {like}docs/configuration.md lists all settings."
        )
    return {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in content.items()
    }

"""The identity of this machine for hubs.

machine.json has the secret by which hubs know this machine, run/instance the id of this start of its daemon. The
secret is random, lasts as long as the home, and is never sent. A hub knows a value derived from it, so a machine keeps
its identity under another key, another name or another address of its hub.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

from occ_app.config.config import Config
from occ_app.errors import StartFailed
from occ_app.home.state import write_private
from occ_app.system.files import write_file

_HUBS_KEPT = 50


@dataclass(frozen=True)
class Machine:
    """The secret, 64 hexadecimal digits, and the ids of the hubs that know it.

    They know its verifier. The newest is last.
    """

    secret: str = field(repr=False)
    hubs: tuple[str, ...] = ()


def load(path: Path) -> Machine | None:
    """Return the stored machine, None when there is none.

    Raises StartFailed when it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        secret, hubs = content["secret"], content["hubs"]
        if not re.fullmatch("[0-9a-f]{64}", secret):
            raise ValueError("no secret")
        return Machine(secret, tuple(map(str, hubs)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StartFailed(
            f"{path} cannot be read; move it away and start again, and hubs register this machine as a new one."
        ) from None


def ensure(path: Path) -> Machine:
    """Return the stored machine; with none yet, one with a new secret."""
    return load(path) or renew(path)


def renew(path: Path) -> Machine:
    """Store and return a new secret.

    From now on this home is another machine to every hub.
    """
    return _save(path, Machine(secrets.token_hex(32)))


def enrolled(path: Path, machine: Machine, hub_id: str) -> Machine:
    """Note that a hub knows this machine's verifier."""
    return _save(path, replace(machine, hubs=(*_others(machine, hub_id), hub_id)))


def unknown_to(path: Path, machine: Machine, hub_id: str) -> Machine:
    """Note that a hub does not know this machine's verifier."""
    return _save(path, replace(machine, hubs=_others(machine, hub_id)))


def begin_instance(config: Config) -> str:
    """Give this start of the daemon an id.

    It distinguishes the start from every other, and from a copy of its home.
    """
    instance = secrets.token_hex(16)
    write_file(config.run / "instance", instance)
    return instance


def instance(config: Config) -> str:
    """Return the id of this start of the daemon; empty before it has one."""
    with contextlib.suppress(OSError):
        return (config.run / "instance").read_text()
    return ""


def _others(machine: Machine, hub_id: str) -> tuple[str, ...]:
    return tuple(known for known in machine.hubs if known != hub_id)[-_HUBS_KEPT:]


def _save(path: Path, machine: Machine) -> Machine:
    if load_quietly(path) != machine:
        write_private(path, {"secret": machine.secret, "hubs": list(machine.hubs)})
    return machine


def load_quietly(path: Path) -> Machine | None:
    """Return the stored machine; None also when it cannot be read."""
    with contextlib.suppress(StartFailed):
        return load(path)
    return None

"""The workspaces, conversations and files of folders that were sent.

There is one of each for an agent or hub. `files` are those that the workspace is known to have: they distinguish edits
made here from those made there. All this is kept in the user's state, never in the folder.
"""

from __future__ import annotations

import hashlib
import shlex
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from occ_app.cli import user_state
from occ_app.cli.zip_names import zip_name

State = tuple[str, bool]
"""The SHA-256 of a file, and whether it is executable."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class Sent:
    """A folder as it was sent.

    `snapshot` is that of the workspace with these files, None where none is known.
    """

    folder: str
    place: str
    workspace: str
    session: str | None
    snapshot: str | None
    files: Mapping[str, State]


def load(folder: Path, place: str) -> Sent | None:
    """Return where a folder was last sent, at an agent or hub; None when it never was."""
    stored = user_state.read(_file(folder, place))
    try:
        files = {str(path): (str(state[0]), bool(state[1])) for path, state in stored["files"].items()}
        return Sent(str(folder), place, stored["workspace"], stored["session"], stored["snapshot"], files)
    except (KeyError, TypeError, AttributeError, IndexError):
        return None


def parent(folder: Path, place: str) -> Sent | None:
    """Return the nearest folder above that was sent to an agent or hub.

    None when none was.
    """
    return next((sent for each in folder.parents if (sent := load(each, place)) is not None), None)


def below(folder: Path, sent: Sent) -> str:
    """Return the sentence for a folder in one that was sent."""
    return f"{folder} is in {sent.folder}, which was sent as a whole; go there, or name it with --dir."


def save(sent: Sent) -> None:
    """Store where a folder was sent."""
    with user_state.changed(_file(Path(sent.folder), sent.place)) as content:
        content.clear()
        content.update(asdict(sent))


def pulled(sent: Sent, base: str | None, result: str | None, files: Mapping[str, State | None]) -> Sent:
    """Return the state after changes between two snapshots came into the folder.

    Changes of another snapshot than the known one leave it as it is.
    """
    return sent if base is None or base != sent.snapshot else compared(sent, result, files)


def compared(sent: Sent, snapshot: str | None, files: Mapping[str, State | None]) -> Sent:
    """Return the state with a snapshot's files where they differ from the known ones."""
    known = dict(sent.files)
    for path, state in files.items():
        if state is None:
            known.pop(path, None)
        else:
            known[path] = state
    return replace(sent, snapshot=snapshot, files=known)


def states(folder: Path, paths: Iterable[Path]) -> dict[str, State]:
    """Return the states of files below a folder, by their names in a zip."""
    found = {}
    for path in paths:
        if path.is_file():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
            found[zip_name(path.relative_to(folder))] = (digest.hexdigest(), bool(path.stat().st_mode & 0o111))
    return found


def packed_states(archive: IO[bytes]) -> dict[str, State]:
    """Return the states of the files in a zip.

    They are exactly those that are sent, even if the folder changes meanwhile.
    """
    found = {}
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            if not info.is_dir():
                digest = hashlib.sha256()
                with zipped.open(info) as file:
                    while piece := file.read(_PIECE):
                        digest.update(piece)
                found[info.filename] = (digest.hexdigest(), bool(info.external_attr >> 16 & 0o111))
    return found


def differences(sent: Sent, now: Mapping[str, State]) -> tuple[list[str], list[str]]:
    """Return the paths that were edited or added here since, and the removed ones."""
    return sorted(path for path in now if sent.files.get(path) != now[path]), sorted(set(sent.files) - set(now))


def option(folder: Path | None) -> str:
    """Return the option that names this folder in a printed command.

    Empty for the current one.
    """
    if folder is None or folder.resolve() == Path.cwd():
        return ""
    return f" --dir {shlex.quote(str(folder))}"


def is_remembered(folder: Path) -> bool:
    """Whether a folder was ever sent anywhere."""
    return str(folder) in user_state.read("folders.json").get("folders", [])


def remember(folder: Path) -> None:
    """Note that a folder is sent, so that nothing else is written into it by default."""
    with user_state.changed("folders.json") as content:
        listed: Any = content.setdefault("folders", [])
        if str(folder) not in listed:
            listed.append(str(folder))


def _file(folder: Path, place: str) -> str:
    name = hashlib.sha256(f"{place}\0{folder}".encode(errors="surrogateescape")).hexdigest()[:32]
    return f"folder-{name}.json"

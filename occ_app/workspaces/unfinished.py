"""The changes that a killed process made to workspaces and did not record.

A supervisor undoes them at its start, without the modules that make the changes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from occ_app.database.database import Database
from occ_app.workspaces.exchange import ASIDE, finish_swap, swap


def undo(db: Database, folder: Path) -> None:
    """Undo the changes of a killed process that it did not record.

    They are in the workspaces' folder; its temporary files are removed.
    """
    for aside in folder.glob(f"{ASIDE}*"):
        with db.read() as connection:
            row = connection.execute(
                "SELECT w.path FROM workspace_jobs j JOIN workspaces w ON w.workspace_id = j.workspace_id"
                " WHERE j.number = :number AND w.source = 'upload'",
                {"number": int(aside.name.removeprefix(ASIDE).partition("-")[0])},
            ).fetchone()
        if row is not None:
            finish_swap(aside, folder / Path(row["path"]).name)
    for staging in folder.glob(".incoming-*"):
        number, _, inode = staging.name.removeprefix(".incoming-").partition("-")
        if inode and staging.stat().st_ino != int(inode):
            with db.read() as connection:
                row = connection.execute(
                    "SELECT w.path FROM workspace_jobs j JOIN workspaces w ON w.workspace_id = j.workspace_id"
                    " WHERE j.number = :number AND j.state != 'succeeded' AND w.source = 'upload'",
                    {"number": int(number)},
                ).fetchone()
            if row is not None:
                swap(staging, folder / Path(row["path"]).name)
        shutil.rmtree(staging, ignore_errors=True)

"""Updates of a hub's workspaces, sent to their machine and added to the zip.

The machine decides whether its files are those that the caller knows. The hub waits for its answer before it replaces
the stored zip: a hub that stops in between has an older zip, never one newer than the machine's files.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from occ_app import errors
from occ_app.config.config import HubConfig
from occ_app.database.database import Database
from occ_app.hub import registrations
from occ_app.hub import workspaces as hub_workspaces
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents
from occ_app.system.compact_json import to_json
from occ_app.system.timestamps import iso_now
from occ_app.workspaces import archives, updates, upload_jobs
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.origin import OPERATOR, Origin
from occ_app.workspaces.upload_jobs import Job
from occ_app.workspaces.workspace import Workspace

_CODES = ("WORKSPACE_CHANGED", "WORKSPACE_BUSY", "WORKSPACE_NOT_FOUND", "WORKSPACE_CONFLICT", "BUSY", "NO_SPACE")


@dataclass(frozen=True)
class Updates:
    """The updates of a hub's workspaces."""

    config: HubConfig
    db: Database
    agents: Agents
    calls: Calls

    def run(self, job: Job) -> None:
        """Update a workspace, and record the result of the job.

        Raises RequestError and OSError.
        """
        workspace = workspaces.get(self.db, job.upload.workspace_id)
        workspaces.refuse_folder(workspace.workspace_id, workspace.source)
        upload_jobs.refuse_unexpected(job.upload, workspace.generation)
        if workspace.placement is None or not workspace.placement.is_current:
            raise errors.Conflict(
                "WORKSPACE_CHANGED",
                f"No machine has the files of workspace {workspace.workspace_id} yet; send the folder as a new one.",
                {"workspaceId": workspace.workspace_id, "snapshot": None},
            )
        with tempfile.TemporaryDirectory(dir=self.config.run / "uploads") as folder:
            merged = Path(folder, "zip")
            self._merge(workspace, job, Path(folder), merged)
            limits = archives.Limits(self.config.max_unpacked_bytes, self.config.max_files)
            unpacked = archives.unpack(merged, None, limits)
            digest = hub_workspaces.keep_zip(merged, job.number, self.config)
        now = iso_now()
        reply = self._send(workspace, job, digest, now)
        self._write_down(workspace, job, digest, unpacked, now, reply.get("snapshot"))

    def _merge(self, workspace: Workspace, job: Job, folder: Path, merged: Path) -> None:
        """Write a zip of the workspace's last upload with the changes applied."""
        # Nothing is left out here: each machine applies its own limits.
        limits = archives.Limits(self.config.max_unpacked_bytes, self.config.max_files, trusted=True)
        old, new = folder / "old", folder / "new"
        old.mkdir()
        new.mkdir()
        stripped = workspace.stripped is not None
        archives.unpack(hub_workspaces.zip_path(self.config, workspace), old, limits, strip_root=stripped)
        if job.upload.zip_path is not None:
            archives.unpack(job.upload.zip_path, new, limits)
        updates.keep(old, new, job.upload.deleted)
        with merged.open("wb") as file:
            for _ in archives.pack(new, file):
                pass

    def _send(self, workspace: Workspace, job: Job, digest: str, now: str) -> Mapping[str, Any]:
        """Send the changes to the machine, and return its reply.

        Raises RequestError when the machine refuses, and Unavailable when it does not answer.
        """
        agent = self.agents.find(workspace.agent_id or "")
        hub_id = registrations.hub_id(self.db)
        origin = Origin(hub_id, workspace.key_id or OPERATOR, digest, now)
        try:
            if agent is None:
                raise errors.Unreachable("no machine has it.")
            with ExitStack() as opened:
                archive: IO[bytes] = io.BytesIO()
                if job.upload.zip_path is not None:
                    archive = opened.enter_context(job.upload.zip_path.open("rb"))
                return self.calls.client(agent).upload(
                    workspace.workspace_id,
                    archive,
                    name=job.upload.name,
                    description=job.upload.description,
                    base=job.upload.base,
                    deletions=job.upload.deleted,
                    generation=workspace.agent_generation,
                    headers=origin.upload(),
                )
        except errors.Refused as refusal:
            if refusal.code in _CODES:
                raise errors.RequestError(refusal.code, str(refusal), refusal.details) from None
            raise errors.Unavailable("AGENT_UNREACHABLE", f"The machine refuses the changes: {refusal}") from None
        except errors.Unreachable as error:
            raise errors.Unavailable(
                "AGENT_UNREACHABLE", f"The machine with the workspace does not answer: {error}"
            ) from None

    def _write_down(
        self, workspace: Workspace, job: Job, digest: str, unpacked: archives.Unpacked, now: str, snapshot: object
    ) -> None:
        with self.db.write() as connection:
            row = connection.execute(
                """
                UPDATE workspaces SET files = :files, bytes = :bytes, skipped = :skipped, updated_at = :now,
                    zip = :zip, stripped = NULL, upload = :number, placed = :number
                WHERE generation = :generation AND agent_id = :agent_id AND upload = :upload RETURNING *
                """,
                {
                    "files": unpacked.files,
                    "bytes": unpacked.bytes,
                    "skipped": to_json(list(unpacked.skipped)),
                    "now": now,
                    "zip": digest,
                    "number": job.number,
                    "generation": workspace.generation,
                    "agent_id": workspace.agent_id,
                    "upload": workspace.upload,
                },
            ).fetchone()
            if row is None:
                raise errors.Unavailable("BUSY", "The workspace was uploaded again or removed meanwhile. Check it.")
            # The snapshot is only in the reply: the hub does not track the snapshots that runs make on the machine.
            tree = snapshot if isinstance(snapshot, str) and updates.is_tree(snapshot) else None
            upload_jobs.succeed(connection, job.number, replace(workspaces.from_row(row), snapshot=tree), reused=False)

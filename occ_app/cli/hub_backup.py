"""occ hub backup | restore | move: a copy of the hub, and moving it elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from occ_app import errors
from occ_app.cli import output, remote
from occ_app.cli.hub_address import address
from occ_app.config.settings import http_origin
from occ_app.home import backup as backups
from occ_app.home import daemon


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(file: Path) -> None:
    """Write a backup of this hub to FILE, a .tar.gz.

    It has the database, the zips, the settings, and the certificate and token of the hub.

    \b
    Example:
      occ hub backup hub.tar.gz
    """
    config = remote.settings("hub")
    if not config.database.exists():
        raise errors.NotRunning(f"There is nothing to back up in {config.home}; `occ hub start` makes a hub.")
    config.make_folders()
    size = backups.write(config, file.absolute())
    output.echo(f"Wrote {file} ({output.size(size)}). It opens this hub; keep it safe.")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
def restore(file: Path) -> None:
    """Make this machine's hub from a backup.

    There must be no hub in its home yet. The machines of the hub find it at any address that they are given.

    \b
    Example:
      occ hub restore hub.tar.gz
    """
    config = remote.settings("hub")
    backups.restore(config, file)
    output.echo(f"The hub is in {config.home}; `occ hub start` starts it. Do not start the original again.")


@click.command()
@click.argument("url")
def move(url: str) -> None:
    """Print the steps that move this hub to another address.

    Its machines keep their ids and workspaces, and its keys stay valid.

    \b
    Example:
      occ hub move https://new.example.com
    """
    try:
        target = http_origin(url)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None
    config = remote.settings("hub")
    running = daemon.find(config)
    former: Any = address(running) if running is not None else config.public_url or "https://old.example.com"
    both = shlex.quote(f"{former},{target}")
    output.echo(
        f"""1. On each machine, while this hub runs: name both addresses.
     occ stop --drain
     OCC_REMOTE_URL={both} OCC_API_KEY=@key.txt occ start
   In config.toml: remote_url = ["{former}", "{target}"]
   A machine uses the second address once the first does not answer, and only if the hub there
   proves that it is this hub.

2. Here:
     occ hub stop
     occ hub backup hub.tar.gz

3. Copy hub.tar.gz to the new machine, and there:
     occ hub restore hub.tar.gz
     occ hub start --public-url {target}
   with the same options for TLS as here. A self-signed certificate is in the backup, so pins stay valid.

4. `occ hub agents` there lists the machines as they come, within a few heartbeats. Then delete the hub here;
   it must not be started again."""
    )

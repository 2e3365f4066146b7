"""occ login | logout | remotes: agents and hubs elsewhere for all commands."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import click

from occ_app import errors
from occ_app.cli import output, remote, remotes
from occ_app.client.agent_client import AgentClient
from occ_app.config import client_variables
from occ_app.config.settings import http_url, is_loopback


@click.command()
@click.argument("url")
@click.option("--name", metavar="NAME", help="Name of the remote.  [default: the host of the URL]")
@click.option("--token", metavar="TOKEN", help="Its token or key, @FILE, or OCC_TOKEN.  [default: ask for it]")
@click.option("--pin", metavar="FINGERPRINT", help="The TLS certificate to trust, and no other.")
def login(url: str, name: str | None, token: str | None, pin: str | None) -> None:
    """Store the address and key of an agent or hub.

    Later commands need no --url, --token or --pin. A self-signed certificate is shown and must be confirmed before the
    key is sent. Without a terminal pass --pin.

    \b
    Example:
      occ login https://hub.example.com
    """
    try:
        url = http_url(url)
    except ValueError as error:
        raise click.UsageError(f"URL {url[:60]!r} cannot be used: {error}.") from None
    name = _checked_name(name, url)
    pin = _trusted(url, pin)
    _warn_unencrypted(url)
    secret = _key(token)
    kind = _kind(AgentClient(url, secret, pin))
    remotes.save(remotes.Remote(name, url, kind, secret, pin))
    output.echo(f"Logged in to {kind} {name} ({url}). Commands use it from now on.")
    output.note(f"`occ remotes use {remotes.LOCAL}` returns to this machine's agent, `occ logout {name}` forgets it.")


def _checked_name(name: str | None, url: str) -> str:
    """Return the name to store.

    Raises UsageError for one that cannot be used or is another remote's.
    """
    if name is None:
        return remotes.free_name(url)
    if not remotes.is_name(name):
        raise click.UsageError(f"--name {name[:60]!r} cannot be used: up to 64 letters, digits, dots or dashes.")
    taken = remotes.find(name)
    if taken is not None and taken.url != url:
        raise click.UsageError(f"{name} is {taken.url} already; choose another --name, or `occ logout {name}` first.")
    return name


def _trusted(url: str, pin: str | None) -> str | None:
    """Return the fingerprint to pin.

    None where the system trusts the certificate, or without TLS. Raises UsageError for an impossible pin, and
    Untrusted for a certificate that is not the pinned or confirmed one.
    """
    from occ_app.client.certificates import presented

    if not url.startswith("https://"):
        if pin is not None:
            raise click.UsageError("--pin is for an address with TLS: give https://….")
        return None
    if pin is not None and not remote.is_fingerprint(pin):
        raise click.UsageError("--pin must be the 32 bytes of a SHA-256 fingerprint, as in 3A:9F:…")
    shown = presented(url)
    if pin is not None:
        if _bytes(pin) != _bytes(shown.fingerprint):
            raise errors.Untrusted(f"{url} shows another certificate than the pinned one: {shown.fingerprint}.")
        return shown.fingerprint
    if shown.distrust is None:
        return None
    return _confirmed(url, shown.fingerprint, shown.distrust)


def _confirmed(url: str, fingerprint: str, reason: str) -> str:
    known = remotes.at(url)
    if known is not None and known.pin is not None and _bytes(known.pin) == _bytes(fingerprint):
        return fingerprint
    if not output.interactive():
        raise errors.Untrusted(
            f"{url} shows a certificate that is not trusted here ({reason}). Compare {fingerprint} with the"
            " one that `occ status` or `occ hub status` prints on that machine, then pass it with --pin."
        )
    if known is not None:
        output.warn(
            "The certificate changed since the last login: it was replaced, or someone intercepts the connection."
        )
    output.echo(
        f"{url} shows a certificate that is not trusted here ({reason}). Its fingerprint:\n  {fingerprint}\n"
        "On that machine `occ status` or `occ hub status` prints the fingerprint.",
        err=True,
    )
    if not click.confirm("Are they the same?", default=False, err=True):
        raise errors.Untrusted("Nothing was sent or stored.")
    return fingerprint


def _bytes(fingerprint: str) -> bytes:
    return bytes.fromhex(fingerprint.replace(":", ""))


def _warn_unencrypted(url: str) -> None:
    if url.startswith("http://") and not is_loopback(urlsplit(url).hostname or ""):
        output.warn("Without https:// the key, prompts and output can be read on the network.")


def _key(token: str | None) -> str:
    """Return the key from an option, a variable or the person.

    It is not shown while it is typed.
    """
    if token is not None:
        return client_variables.read_secret(token, "--token")
    secret = client_variables.client_token()
    if secret is not None:
        return secret
    if not output.interactive():
        raise click.UsageError("Pass the key with --token @FILE or OCC_TOKEN; the prompt for it needs a terminal.")
    given: str = click.prompt("Key (not shown)", hide_input=True, err=True)
    return given.strip()


def _kind(client: AgentClient) -> str:
    """Return agent or hub.

    Raises Refused for a key that it does not accept, and Unreachable.
    """
    client.workspaces()
    try:
        client.call("GET", "/agents")
    except errors.Refused as refusal:
        if refusal.code == "NOT_FOUND":
            return "agent"
        raise
    return "hub"


@click.command()
@click.argument("name", required=False)
def logout(name: str | None) -> None:
    """Forget a remote and its key.

    Without NAME it is the default remote. The key stays valid there: `occ hub keys revoke` on the hub, or
    `occ token rotate` on the agent, ends it.

    \b
    Example:
      occ logout hub.example.com
    """
    if name is None:
        known = remotes.default()
        if known is None:
            raise click.UsageError("No remote is the default; name one from `occ remotes`.")
        name = known.name
    if not remotes.remove(name):
        raise click.UsageError(f"There is no remote {name[:60]!r}; `occ remotes` lists them.")
    output.echo(f"{name} is forgotten. Commands use {_current()}.")


@click.group("remotes", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def remotes_group(context: click.Context, as_json: bool) -> None:
    """List the agents and hubs that you have logged in to.

    Keys are not shown.

    \b
    Examples:
      occ remotes
      occ remotes use hub.example.com
    """
    if context.invoked_subcommand is not None:
        return
    found, default = remotes.listing(), remotes.default()
    if as_json:
        listed = [{"name": r.name, "kind": r.kind, "url": r.url, "pin": r.pin, "default": r == default} for r in found]
        output.echo(json.dumps({"remotes": listed}))
        return
    if not found:
        output.echo("No remotes; `occ login URL` adds one.")
        return
    rows = [(r.name, r.kind, "yes" if r == default else "", r.url) for r in found]
    output.table([("NAME", "KIND", "DEFAULT", "URL"), *rows])
    if client_variables.client_url() is not None:
        output.note("OCC_URL is set and overrides the default.")


@remotes_group.command("use")
@click.argument("name")
def use(name: str) -> None:
    """Choose the remote that commands use.

    `local` is the agent of this machine.

    \b
    Example:
      occ remotes use local
    """
    if name != remotes.LOCAL and remotes.find(name) is None:
        raise click.UsageError(f"There is no remote {name[:60]!r}; `occ remotes` lists them.")
    remotes.use(None if name == remotes.LOCAL else name)
    output.echo(f"Commands use {_current()}.")


def _current() -> str:
    place = remote.decide(None, None, None)
    return "the agent of this machine" if place is None else place.label

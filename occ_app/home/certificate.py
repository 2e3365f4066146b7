"""TLS of the API: an agent's certificate and its fingerprint.

The certificate is the operator's or a self-signed one.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from occ_app.config.config import Config
from occ_app.errors import StartFailed
from occ_app.home.certificate_dates import expires_at, first_certificate

EXPIRED = "The TLS certificate"  # as the sentence for it begins
_OPENSSL_SECONDS = 30
_DAYS = 3650  # a client that pins it trusts this very certificate, so an expiry would only be a surprise


@dataclass(frozen=True)
class Certificate:
    """A certificate in use: PEM files and a fingerprint.

    The fingerprint is the SHA-256 of its first certificate as AA:BB:…
    """

    chain: Path
    key: Path
    fingerprint: str


def certificate(config: Config) -> Certificate | None:
    """Return the configured certificate, None without TLS.

    A self-signed one is made at the first call and kept. Raises StartFailed when it cannot be used or made.
    """
    if config.tls_cert and config.tls_key:
        return checked(Path(config.tls_cert), Path(config.tls_key))
    if config.tls is None:
        return None
    self_signed = config.home / "tls.pem"
    if not self_signed.exists():
        _make(self_signed, _names(config))
    return checked(self_signed, self_signed)


def checked(chain: Path, key: Path) -> Certificate:
    """Return the certificate in two PEM files.

    Raises StartFailed when they are no pair.
    """
    import ssl  # an agent without TLS does without its memory

    try:
        # An empty passphrase makes a locked key an error, where OpenSSL would ask on the terminal.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(chain, key, password="")
        return Certificate(chain, key, _fingerprint(chain.read_text()))
    except ssl.SSLError as error:
        raise StartFailed(
            f"{chain} and {key} are not a certificate and its key ({error.reason or 'not readable as PEM'}); both must"
            " be PEM, belong together, and the key must have no passphrase."
        ) from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise StartFailed(f"The certificate {chain} with the key {key} cannot be read: {reason}.") from None


def _fingerprint(pem: str) -> str:
    return hashlib.sha256(first_certificate(pem)).digest().hex(":").upper()


def fingerprint_of(chain: Path) -> str | None:
    """Return the fingerprint of the first certificate that the file has now.

    None when it cannot be read.
    """
    try:
        return _fingerprint(chain.read_text())
    except (OSError, ValueError):
        return None


def problems(config: Config) -> list[str]:
    """Return a sentence when the served certificate has expired."""
    chain = chain_of(config)
    try:
        end = None if chain is None else expires_at(first_certificate(chain.read_text()))
    except (OSError, ValueError):
        return []  # the start refuses such a file; later the pair that was read before goes on being served
    if end is None or end > datetime.now(UTC):
        return []
    return [
        f"{EXPIRED} {chain} expired on {end:%Y-%m-%d}: clients refuse it. Renew it; the new one is served"
        " without a restart."
    ]


def chain_of(config: Config) -> Path | None:
    """Return the file of the configured certificate; None without TLS."""
    if config.tls_cert:
        return Path(config.tls_cert)
    return config.home / "tls.pem" if config.tls else None


def _names(config: Config) -> str:
    """Return the names that the certificate is for, as OpenSSL writes them.

    They are this machine's, and those that the operator configured.
    """
    hosts = {"localhost", socket.gethostname(), *config.allowed_hosts}
    if config.public_url:
        hosts.add(urlsplit(config.public_url).hostname or "localhost")
    named = sorted(host for host in hosts if re.fullmatch(r"[A-Za-z0-9._-]+", host) and not _is_ip(host))
    return ",".join([*(f"DNS:{host}" for host in named), "IP:127.0.0.1", "IP:::1"])


def _is_ip(host: str) -> bool:
    return re.fullmatch(r"[0-9.]+", host) is not None


def _make(path: Path, names: str) -> None:
    """Write a key and a certificate for it into one file, in one step."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tls-") as folder:
        key, chain = Path(folder, "key"), Path(folder, "certificate")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", str(_DAYS), "-subj", "/CN=OCC agent", "-addext", f"subjectAltName={names}"]
        try:
            subprocess.run(
                [*command, "-keyout", str(key), "-out", str(chain)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_OPENSSL_SECONDS,
                check=True,
            )
        except FileNotFoundError:
            raise StartFailed(
                "OCC makes certificates with openssl, which is not installed; install it, or pass --tls-cert and "
                "--tls-key."
            ) from None
        except subprocess.SubprocessError as error:
            reason = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1:]
            raise StartFailed(f"openssl could not make a certificate: {' '.join(reason)}.") from None
        both = Path(folder, "both")
        both.touch(mode=0o600)
        both.write_text(key.read_text() + chain.read_text())
        os.replace(both, path)

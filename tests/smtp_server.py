"""A mail server on loopback: as much of SMTP as smtplib uses, without TLS."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message


@dataclass
class MailServer:
    """The received messages and commands. `refusals` answer the next messages; a server that `hangs` is silent."""

    port: int = 0
    mails: list[Message] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    extensions: tuple[str, ...] = ()
    refusals: list[str] = field(default_factory=list)
    hangs: bool = False
    released: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def mail_server() -> Iterator[MailServer]:
    """A server that accepts every message."""
    state = MailServer()

    class Handler(socketserver.StreamRequestHandler):
        def say(self, line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        def handle(self) -> None:
            if state.hangs:
                state.released.wait(30)
                return
            self.say("220 test")
            for received in self.rfile:
                command = received.decode().strip()
                state.commands.append(command)
                verb = command.upper()[:4]
                if verb == "EHLO":
                    for line in ("test", *state.extensions):
                        self.say(f"250-{line}")
                    self.say("250 SIZE 1000000")
                elif verb == "DATA":
                    self.say("354 go on")
                    content = b""
                    while not content.endswith(b"\r\n.\r\n"):
                        content += self.rfile.readline()
                    if state.refusals:
                        self.say(state.refusals.pop(0))
                        continue
                    state.mails.append(message_from_bytes(content[:-3]))
                    self.say("250 taken")
                elif verb == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("235 yes" if verb == "AUTH" else "250 yes")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            server.shutdown()
            thread.join()

"""The address of a page: where it listens, and who may use it."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from helios_cli.errors import InputError

LOOPBACK = "127.0.0.1"
EXAMPLES = "write a port such as 8000, for other machines 0.0.0.0:8000"


@dataclass(frozen=True)
class Address:
    """The host and port of a page. `token` is the first part of its paths, and "" on this machine alone."""

    host: str
    port: int
    token: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `[HOST:]PORT`: this machine alone without a host. InputError for anything else."""
        found = re.fullmatch(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+):)?(?P<port>[0-9]{1,5})", text)
        if not found or int(found["port"]) > 65535:
            raise InputError(f"{text!r} is not an address of a page", hint=EXAMPLES)
        host = (found["host"] or LOOPBACK).strip("[]")
        return cls(host, int(found["port"]), "" if _is_here(host) else secrets.token_urlsafe(16))

    @property
    def root(self) -> str:
        """The path of the page, and the beginning of all others."""
        return f"/{self.token}/" if self.token else "/"

    @property
    def url(self) -> str:
        """The address to open; where all interfaces are meant, by the name of this machine."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}{self.root}"

    def admits(self, path: str, host: str, origin: str | None) -> bool:
        """Return whether to answer a request for `path` with these headers.

        A page of another site must not reach this one through the user's browser: not by its own requests, which have
        its origin, and not by a name that it lets point to this machine. A token keeps out the latter, too.
        """
        try:
            if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                return False
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # half a bracket
            return False
        if self.token:
            first = path.removeprefix("/").partition("/")[0]
            return hmac.compare_digest(first.encode(errors="replace"), self.token.encode())
        return _is_here(name)


def _is_here(host: str) -> bool:
    """Return whether only this machine can reach `host`; without asking for names, which others may decide."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"

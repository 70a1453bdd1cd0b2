"""The server's door: which hosts and origins may ask, and with which token. Nothing behind it sees what it refuses.

A page of another site can make a browser send requests to a loopback address. Its Origin gives it away, and where it has
pointed a name of its own to that address (DNS rebinding) the Host does. An address that is a number cannot be pointed
elsewhere, so such hosts are taken.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from typing import Any

from engine.errors import ArgumentError
from engine.http.refusals import Refusal, error_body

OPEN = ("/healthz", "/readyz")  # without a token: they say nothing but yes or no
MIN_TOKEN = 16  # characters


@dataclass(frozen=True)
class Door:
    """hosts    names under which the server may be asked, beside localhost and addresses
    origins  other sites whose pages may ask, such as https://tools.example
    token    what every request must bring, None for none
    public   paths that need none: the studio's own files
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    token: str | None = None
    public: tuple[str, ...] = ()


def check_address(host: str, token: str | None) -> None:
    """Refuse to listen elsewhere than on loopback without a token, and a token that can be guessed."""
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise ArgumentError(
            f"token: found {len(token)} characters, expected at least {MIN_TOKEN} printable ones of ASCII without spaces; "
            "make one with: openssl rand -hex 32"
        )
    if token is None and not is_loopback(host):
        raise ArgumentError(
            f"host: found {host!r} without a token, expected 127.0.0.1, which only this machine reaches; name a file with a "
            "token: --token-file FILE, made with: openssl rand -hex 32 > FILE"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware that lets through what the door allows."""

    def __init__(self, app: Any, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 401 or 403 where a request may not pass."""
        if scope["type"] == "http":
            try:
                pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
                self.check(scope["path"], dict(pairs))
            except Refusal as refusal:
                headers = [(b"content-type", b"application/json"), *_raw(refusal.headers)]
                await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
                await send({"type": "http.response.body", "body": error_body(refusal)})
                return
        await self.app(scope, receive, send)

    def check(self, path: str, headers: dict[str, str]) -> None:
        """Refusal of a request that may not pass."""
        host = headers.get("host", "")
        if not self._known(host):
            raise Refusal(
                403, f"host: found {host[:200]!r}, expected localhost, an address, or a name of --allow-host; name it there"
            )
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}", *self.door.origins):
            raise Refusal(
                403, f"origin: found {origin[:200]!r}, expected this server's page or one of --allow-origin; name it there"
            )
        if self.door.token is not None and path not in (*OPEN, *self.door.public):
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.door.token}".encode()):
                found = "another token" if given else "no token"
                message = f"authorization: found {found}, expected the server's; send the header Authorization: Bearer TOKEN"
                raise Refusal(401, message, {"WWW-Authenticate": "Bearer"})

    def _known(self, host: str) -> bool:
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.lower() in ("localhost", *self.door.hosts):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]

"""Who may ask, and how much: checks before a request is read, as ASGI middleware.

Host and Origin: a page of another site must not reach a server on somebody's machine, nor a name that was made to point
at it (DNS rebinding). A key, where one is set, is compared in constant time. A body beyond the limit is refused by its
stated length, or when it grows beyond it; one that does not come in time too.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

__all__ = ["LOOPBACK", "Guard", "error_body", "is_loopback"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = ("/", "/health", "/.well-known/live", "/.well-known/ready")  # paths that need no key


def is_loopback(host: str) -> bool:
    """Whether a host name is this machine's own."""
    return host in LOOPBACK or host.startswith("127.")


class Guard:
    """Wraps an ASGI application."""

    def __init__(self, app: Callable, hosts: tuple[str, ...], api_key: str | None, max_body: int, body_timeout: float):
        self.app, self.hosts, self.api_key = app, hosts, api_key
        self.max_body, self.body_timeout = max_body, body_timeout

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refused = self.refusal(scope["path"], headers)
        if refused:
            await respond(send, *refused)
            return
        try:
            body = await asyncio.wait_for(self.body(receive), self.body_timeout)
        except TimeoutError:
            await respond(send, 408, f"the body did not come in {self.body_timeout:g} s")
            return
        if body is None:
            await respond(send, 413, f"the body is larger than {self.max_body} bytes")
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def read() -> dict[str, Any]:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, read, send)

    async def body(self, receive: Callable) -> bytes | None:
        """The whole body; None where it is larger than it may be."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)

    def refusal(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Status and message where a request is not let in."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts and urlsplit(f"//{host}").hostname not in self.hosts:
            return 421, f"host: found {host!r}, expected one of {', '.join(self.hosts)}"
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and urlsplit(origin).netloc != host:
            return 403, f"origin: found {origin!r}, expected the server's own page"
        key = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if self.api_key and path not in OPEN and not hmac.compare_digest(key, self.api_key.encode()):
            return 401, "authorization: expected Bearer and the server's key"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            return 413, f"the body is larger than {self.max_body} bytes"
        return None


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


async def respond(send: Callable, status: int, message: str) -> None:
    """Answers with an error, and closes the connection: what is left of the request is not read."""
    body = json.dumps(error_body(message, status)).encode()
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

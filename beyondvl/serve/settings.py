"""What a server allows."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """Limits and checks of a server.

    Attributes:
        hosts: names by which it may be called beside this machine's own; empty and `any_host`: all.
        api_key: what a caller has to show ("Authorization: Bearer ..."); None: nothing.
        max_body: bytes of a request.
        max_items: items of a request.
        max_batch: items that are encoded at once.
        max_chats: answers that may be written or wait.
        max_waiting: items that may wait before callers are told to come again (503).
        body_timeout, timeout: seconds for a body to come, for an answer to be made.
    """

    hosts: tuple[str, ...] = ()
    any_host: bool = False
    api_key: str | None = field(default_factory=lambda: os.environ.get("BEYONDVL_API_KEY"), repr=False)
    max_body: int = 32 << 20
    max_items: int = 256
    max_batch: int = 64
    max_chats: int = 64
    max_waiting: int = 8192
    body_timeout: float = 30.0
    timeout: float = 120.0

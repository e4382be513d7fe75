"""Who may ask for what: a key of the store in the header `Authorization: Bearer KEY`."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool

GRANTED_BY = {"read": ("read", "admin"), "write": ("write", "admin"), "admin": ("admin",)}  # admin may do all


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def needs(scope: str) -> Callable[[Request], Awaitable[None]]:
    """A dependency of a route: answers 401 without a key that is valid, and 403 with one of another scope."""

    async def check(request: Request) -> None:
        service = request.app.state.service
        if not service.needs_keys:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not key:
            raise HTTPException(
                401, "a key is needed, as in Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"}
            )
        held = await run_in_threadpool(service.store.scope_of, key)
        if held is None:
            raise HTTPException(401, "the key is unknown or revoked.", {"WWW-Authenticate": "Bearer"})
        if held not in GRANTED_BY[scope]:
            raise HTTPException(403, f"this needs a key of scope {' or '.join(GRANTED_BY[scope])}, not {held}.")

    return check

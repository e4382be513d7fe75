"""What the service refuses before it works: too large, too slow, too many at once, or meant for another host. Every answer gets the
security headers here, and is counted."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidrec.pipeline.errors import InputError
from sidrec.serving.metrics import Metrics
from sidrec.serving.requests import EventsCall, ItemsCall, ListRequest, RecommendCall

BODY_SECONDS = 30  # for which a client may take to send its request
RETRY_AFTER = (b"retry-after", b"1")  # seconds
ALWAYS = ("/healthz", "/readyz", "/metrics")  # answered however many requests there are, and not counted among them
METHODS = ("GET", "POST", "DELETE")  # which have a count of their own
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = [
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


@dataclass(frozen=True)
class Limits:
    """max_history: item ids of a history, and how many of a user's newest events make one. max_requests: of one call of /recommend.
    max_events: of one call of /events, and items of one of /items."""

    max_concurrency: int = 256
    max_body_bytes: int = 1_000_000
    max_k: int = 500
    max_history: int = 10_000
    max_requests: int = 100
    max_events: int = 1_000

    def check_lists(self, call: RecommendCall) -> None:
        """Raise InputError, naming the field."""
        _refuse_above(self.max_requests, len(call.requests), "requests")
        for number, request in enumerate(call.requests):
            self._check_list(f"requests[{number}]", request)

    def _check_list(self, where: str, request: ListRequest) -> None:
        _refuse_above(self.max_k, request.k, f"{where}.k")
        _refuse_above(self.max_history, len(request.history or []), f"{where}.history")
        _refuse_above(self.max_history, len(request.exclude), f"{where}.exclude")

    def check_rows(self, call: EventsCall | ItemsCall) -> None:
        rows, name = (call.events, "events") if isinstance(call, EventsCall) else (call.items, "items")
        _refuse_above(self.max_events, len(rows), name)


def _refuse_above(most: int, value: int, name: str) -> None:
    if value > most:
        raise InputError(f"{name} is {value:,}, above the {most:,} that this service answers.")


class Gate:
    """Around the application: reads the body, within bytes and seconds, before a request counts against max_concurrency.

    hosts: names by which a service without keys may be called, so that no other site's page reaches it under a name of its own; None: any.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, hosts: frozenset[str] | None) -> None:
        self.app, self.limits, self.metrics, self.hosts = app, limits, metrics, hosts
        self._answering = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *SECURITY_HEADERS]
            await send(message)

        try:
            await self._pass(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if route != "none" and scope["method"] in METHODS else "any"
            self.metrics.requests.labels(method, route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)
        return None

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self.hosts is not None and host_of(headers.get(b"host", b"")) not in self.hosts:
            return await refuse(send, 421, "this service has no keys and answers under its loopback name only.")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await read_body(receive, headers, self.limits.max_body_bytes)
        except TimeoutError:
            return await refuse(send, 408, f"the body took longer than {BODY_SECONDS} seconds.")
        if body is None:
            return await refuse(send, 413, f"the body is above {self.limits.max_body_bytes:,} bytes.")
        if scope["path"] in ALWAYS:
            return await self.app(scope, replaying(body, receive), send)
        if self._answering >= self.limits.max_concurrency:
            return await refuse(send, 429, f"{self._answering} requests are being answered; try again.", [RETRY_AFTER])
        self._answering += 1
        self.metrics.in_flight.set(self._answering)
        try:
            await self.app(scope, replaying(body, receive), send)
        finally:
            self._answering -= 1
            self.metrics.in_flight.set(self._answering)
        return None


async def read_body(receive: Receive, headers: dict[bytes, bytes], most: int) -> bytes | None:
    """None where it has more bytes than `most`."""
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > most:
        return None
    chunks, size = [], 0
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > most:
            return None
        if message["type"] != "http.request" or not message.get("more_body", False):
            return b"".join(chunks)


def replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the whole body, and then what comes."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def host_of(header: bytes) -> str:
    """Of a Host header, without the port and a v6 address's brackets."""
    text = header.decode("latin-1").lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


async def refuse(send: Send, status: int, reason: str, headers: Any = ()) -> None:
    body = json.dumps({"detail": reason}).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})

"""Requests that no honest client sends: wrong types, sizes, texts, numbers, SQL, paths, nesting. None may be answered with 500."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

JSON = {"Content-Type": "application/json"}
TEXTS = (
    "", " ", "\0", "a\0b", "é", "\ud800", "\U0001f600" * 50, "\u202e", "' OR 1=1 --", "'; DROP TABLE events; --", "../../etc/passwd",
    "/etc/passwd", "%00", "%s%n", "{{7*7}}", "${jndi:ldap://x}", "<script>alert(1)</script>", "x" * 513, "x" * 5000, "item 1", "i1", "NaN",
    "null", "-1", "__class__", "item_id", "price", "title", "\n\r", "Infinity", "a" * 70_000,
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 1.5, -0.0, 1e308, float("inf"), float("nan"))


class Hostile(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None


def hostile_requests(n: int, seed: int) -> Iterator[Hostile]:
    """n of them; the same for the same seed."""
    draw = random.Random(seed)
    for _ in range(n):
        yield draw.choice(KINDS)(draw)


def value(draw: random.Random, depth: int = 3) -> Any:
    """Any JSON."""
    kind = draw.randrange(7 if depth else 5)
    if kind < 2:
        return draw.choice(TEXTS)
    if kind < 4:
        return draw.choice(NUMBERS)
    if kind == 4:
        return draw.choice((None, True, False))
    if kind == 5:
        return [value(draw, depth - 1) for _ in range(draw.randrange(5))]
    return {draw.choice(TEXTS): value(draw, depth - 1) for _ in range(draw.randrange(4))}


def mostly(draw: random.Random, honest: Any) -> Any:
    """What an honest client sends, or anything else."""
    return honest if draw.random() < 0.7 else value(draw)


def _body(draw: random.Random, content: Any) -> bytes:
    """As JSON, sometimes cut, doubled, in another encoding or with a byte changed."""
    text = json.dumps(content)
    data = (
        text.encode()
        if draw.random() < 0.7
        else json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
    damage = draw.randrange(20)
    if damage == 0:
        return data[: draw.randrange(len(data) + 1)]
    if damage == 1:
        return data * 2
    if damage == 2:
        return text.encode("utf-16")
    if damage == 3:
        place = draw.randrange(len(data))
        return data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :]
    return data


def _recommend(draw: random.Random) -> Hostile:
    request = {
        draw.choice(("history", "user", "history")): mostly(draw, ["item 1", "item 2"]),
        "k": mostly(draw, 5),
        "where": mostly(draw, [_condition(draw) for _ in range(draw.randrange(3))]),
        "exclude": mostly(draw, ["item 3"]),
        "keep_seen": mostly(draw, True),
        "diversity": mostly(draw, 2),
    }
    chosen = {name: part for name, part in request.items() if draw.random() < 0.6}
    return Hostile("POST", "/recommend", JSON, _body(draw, {"requests": mostly(draw, [chosen])}))


def _condition(draw: random.Random) -> dict[str, Any]:
    return {
        "column": mostly(draw, draw.choice(("price", "title", "item_id", "sid"))),
        "op": mostly(draw, draw.choice(("=", "<", "in", "contains", "!="))),
        "value": value(draw, 1),
    }


def _events(draw: random.Random) -> Hostile:
    event = {name: mostly(draw, f"{name} {draw.random()}") for name in ("event_id", "user_id", "item_id")}
    event |= {
        "timestamp": mostly(draw, 1_700_000_000),
        "value": mostly(draw, 4.5),
        "extra": mostly(draw, {"a": value(draw)}),
    }
    return Hostile("POST", "/events", JSON, _body(draw, {"events": mostly(draw, [event])}))


def _items(draw: random.Random) -> Hostile:
    item = {name: value(draw, 1) for name in ("item_id", "title", "price", draw.choice(TEXTS)) if draw.random() < 0.7}
    return Hostile(
        "POST", "/items", JSON, _body(draw, {"items": mostly(draw, [item]), "new_sids": mostly(draw, False)})
    )


def _bundle(draw: random.Random) -> Hostile:
    return Hostile("POST", "/admin/bundle", JSON, _body(draw, {"bundle": value(draw, 1)}))


def _nested(draw: random.Random) -> Hostile:
    depth, path = draw.choice((100, 5_000, 100_000)), draw.choice(("/recommend", "/events", "/items"))
    opening, closing = draw.choice((("[", "]"), ('{"a":', "}"), ('{"requests":[', "]}")))
    return Hostile("POST", path, JSON, (opening * depth + "1" + closing * depth).encode())


def _address(draw: random.Random) -> Hostile:
    text = quote(draw.choice(TEXTS).encode("utf-8", "surrogatepass")[:8_000], safe=draw.choice(("", "/.")))
    path = draw.choice(
        (f"/items?query={text}&limit={text}", f"/items?query={text}", f"/users/{text}", f"/items/{text}", f"/{text}")
    )
    return Hostile(draw.choice(("GET", "DELETE", "PUT", "OPTIONS", "HEAD")), path, {}, None)


def _bytes(draw: random.Random) -> Hostile:
    kind = draw.choice(
        ("application/json", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=x")
    )
    size = draw.choice((0, 1, 100, 10_000, 1_000_001))
    headers = {
        "Content-Type": kind,
        "Authorization": f"Bearer {quote(draw.choice(TEXTS)[:500].encode('utf-8', 'replace'))}",
    }
    return Hostile(
        "POST", draw.choice(("/recommend", "/events", "/items", "/admin/bundle", "/")), headers, draw.randbytes(size)
    )


KINDS: tuple[Callable[[random.Random], Hostile], ...] = (
    *(_recommend,) * 6, *(_events,) * 4, *(_items,) * 2, _bundle, _nested, *(_address,) * 3, _bytes,
)  # fmt: skip

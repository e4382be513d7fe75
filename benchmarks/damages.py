"""What can happen to a file: cut, mixed up, emptied, exchanged, lost. Each kind of damage is a function of a random generator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ODD_VALUES: tuple[Any, ...] = (None, True, -1, 0, 2**63, 1e308, "", "x", "../x", [], {}, [None], {"a": 1})
ODD_BYTES = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"\n\n",
    b",",
    b"\t",
    b"|",
    b"{",
    b"]",
    b"nan",
    b"-1",
    b"9" * 30,
    "\u2028é".encode(),
)


def cut(rng: np.random.Generator, content: bytes) -> bytes:
    return content[: rng.integers(0, max(1, len(content)))]


def flipped(rng: np.random.Generator, content: bytes) -> bytes:
    """Some bytes are others."""
    changed = np.frombuffer(content or b"\0", np.uint8).copy()
    places = rng.integers(0, len(changed), rng.integers(1, 9))
    changed[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
    return changed.tobytes()


def odd_inside(rng: np.random.Generator, content: bytes) -> bytes:
    """Bytes that mean something to some reader stand in the middle, or in the place of what was there."""
    start = int(rng.integers(0, len(content) + 1))
    end = start + int(rng.integers(0, 2)) * int(rng.integers(0, 40))
    return content[:start] + ODD_BYTES[rng.integers(len(ODD_BYTES))] * int(rng.integers(1, 4)) + content[end:]


def lines_mixed(rng: np.random.Generator, content: bytes) -> bytes:
    """A line is lost, twice there, or in another's place."""
    lines = content.split(b"\n")
    here, there = rng.integers(0, len(lines), 2)
    what = rng.integers(3)
    if what == 0:
        del lines[here]
    elif what == 1:
        lines.insert(there, lines[here])
    else:
        lines[here], lines[there] = lines[there], lines[here]
    return b"\n".join(lines)


def emptied(rng: np.random.Generator, content: bytes) -> bytes:
    return b""


def noise(rng: np.random.Generator, content: bytes) -> bytes:
    return rng.bytes(int(rng.integers(1, 2000)))


def longer(rng: np.random.Generator, content: bytes) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 100)))


def other_json(rng: np.random.Generator, content: bytes) -> bytes:
    """Of a JSON file: one value, anywhere in it, is another or lost. Of other files: bytes are flipped."""
    try:
        tree = json.loads(content)
    except ValueError:
        return flipped(rng, content)
    places = list(_places(tree))
    if not places:
        return json.dumps(ODD_VALUES[rng.integers(len(ODD_VALUES))]).encode()
    holder, key = places[rng.integers(len(places))]
    if rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    return json.dumps(tree).encode()


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (dictionary or list, key) below."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [place for key in keys for place in [(tree, key), *_places(tree[key])]]


OF_BYTES: tuple[Callable[[np.random.Generator, bytes], bytes], ...] = (
    cut,
    flipped,
    odd_inside,
    lines_mixed,
    emptied,
    noise,
    longer,
    other_json,
)


def other_bytes(rng: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    """The damage's name, and bytes that differ from `content`."""
    while True:
        damage = OF_BYTES[rng.integers(len(OF_BYTES))]
        changed = damage(rng, content)
        if changed != content:
            return damage.__name__, changed


def damage_file(rng: np.random.Generator, file: Path, others: list[Path]) -> str:
    """Damage one file, and say how. others: valid files of which one may come in its place."""
    chance = rng.random()
    content = file.read_bytes()
    if chance < 0.1:
        file.unlink()
        return "lost"
    if chance < 0.15:
        file.unlink()
        file.mkdir()
        return "a folder in its place"
    candidates = [other for other in others if other.read_bytes() != content]
    if chance < 0.45 and candidates:
        other = candidates[rng.integers(len(candidates))]
        file.unlink()
        shutil.copyfile(other, file)
        return f"exchanged for {other.parent.name}/{other.name}"
    name, changed = other_bytes(rng, content)
    file.write_bytes(changed)
    return name

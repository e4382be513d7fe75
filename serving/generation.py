"""What is served from one change to the next: a bundle with one version of its catalogue. A request keeps the generation that it began
with until its answer is sent; whoever switches waits for these, so that nothing of the old one comes after the switch is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sidrec.serving.bundle import Bundle

MOST_SECONDS = 30  # for which a switch waits for clients that do not read their answers


@dataclass(eq=False)
class Generation:
    """folder: where the bundle lies. version: of its catalogue. content: sha256 of the bundle's files. requests: how many are answered with
    it now."""

    bundle: Bundle
    folder: Path
    version: int
    content: str
    requests: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def policy(self) -> str:
        """By which the log of served lists names what made them: `sft-3f2a9c0d51b7`. Two bundles of one kind have two."""
        return f"{self.bundle.name}-{self.content[:12]}"


class Generations:
    """current: which one a request gets. Used by the event loop alone."""

    def __init__(self, first: Generation) -> None:
        self.current = first

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Generation]:
        generation = self.current
        generation.requests += 1
        try:
            yield generation
        finally:
            generation.requests -= 1
            if generation is not self.current and not generation.requests:
                generation.ended.set()

    async def switch(self, after: Generation) -> None:
        """Give the next requests this one; return when all answers of the one before are sent, or after MOST_SECONDS."""
        before, self.current = self.current, after
        if before.requests:
            try:
                await asyncio.wait_for(before.ended.wait(), MOST_SECONDS)
            except TimeoutError:
                return

"""sidrec turns a catalogue and an interaction log into a generative recommender."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidrec.serving.api import Recommender

__all__ = ["Recommender"]


def __getattr__(name: str) -> Any:
    """`Recommender` is loaded, with torch, when it is asked for."""
    if name in __all__:
        from sidrec.serving.api import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

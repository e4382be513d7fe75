"""What a code's probability is normalised over: the codes that exist under its prefix, its level's codes, or all tokens."""

from __future__ import annotations

from typing import Literal, get_args

Normaliser = Literal["children", "level", "full"]
NORMALISERS: tuple[Normaliser, ...] = get_args(Normaliser)

"""The settings of a finite scalar grid (sidrec.tokenizer.autoencoders.finite_scalar)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sidrec.pipeline.errors import InputError

MOST_CODES = 65_536  # every code is a token of the language model


@dataclass
class GridSettings:
    """One token rounds each of its dimensions to a few levels."""

    fsq_levels: list[int] = field(
        default_factory=lambda: [8, 6, 5],
        metadata={
            "help": "Levels of each dimension of one token; the product is the number of its codes: 8 6 5 gives 240."
        },
    )

    def __post_init__(self) -> None:
        levels = self.fsq_levels
        if not isinstance(levels, list) or not levels or not all(type(n) is int and n >= 2 for n in levels):
            raise InputError(f"fsq_levels is {levels!r}; give a list of whole numbers of at least 2, such as 8 6 5.")
        if self.n_codes > MOST_CODES:
            raise InputError(
                f"fsq_levels {' '.join(map(str, levels))} give {self.n_codes:,} codes, more than {MOST_CODES:,}; lower them, or spread "
                "them over more tokens."
            )

    @property
    def n_codes(self) -> int:
        """K: the number of codes of one token, the product of its levels."""
        return math.prod(self.fsq_levels)

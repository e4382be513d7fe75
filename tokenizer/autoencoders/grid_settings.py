"""The settings of a finite scalar grid (sidrec.tokenizer.autoencoders.finite_scalar)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sidrec.pipeline.errors import InputError

MOST_CODES = 65_536  # every code is a token of the language model
SIZES = {  # about so many codes: levels whose product is near it (the table of arXiv 2309.15505)
    16: (5, 3),
    64: (8, 8),
    256: (8, 6, 5),
    512: (8, 8, 8),
    1024: (8, 5, 5, 5),
    2048: (8, 8, 6, 5),
    4096: (7, 5, 5, 5, 5),
    16_384: (8, 8, 8, 6, 5),
    65_536: (8, 8, 8, 5, 5, 5),
}


@dataclass
class GridSettings:
    """One token rounds each of its dimensions to a few levels."""

    fsq_levels: list[int] = field(
        default_factory=lambda: [8, 6, 5],
        metadata={
            "help": "Levels of each dimension of one token; the product is the number of its codes: 8 6 5 gives 240."
        },
    )
    fsq_size: int = field(
        default=0,
        metadata={
            "help": "Codes of one token, about: takes --fsq_levels from a table, in place of any that are set. "
            + ", ".join(f"{size} ({' '.join(map(str, levels))})" for size, levels in SIZES.items())
            + "; 0 = as --fsq_levels says."
        },
    )

    def __post_init__(self) -> None:
        if self.fsq_size:
            if self.fsq_size not in SIZES:
                raise InputError(
                    f"fsq_size is {self.fsq_size!r}; it must be one of {', '.join(map(str, SIZES))}, or write --fsq_levels."
                )
            self.fsq_levels, self.fsq_size = list(SIZES[self.fsq_size]), 0  # one setting that counts
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

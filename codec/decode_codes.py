"""Print the text of codes.

sidrec codec decode --run_dir outputs/codec --codes "[[3, 17, 5, 2]]"
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sidrec.codec.encode_text import given
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass
class DecodeConfig:
    """Print the text of codes."""

    codes: str = field(metadata={"help": "What `sidrec codec encode` prints; - reads it from standard input."})
    run_dir: Path = field(default=Path("outputs/codec"), metadata={"help": "Run directory with text/ and codec/."})


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(DecodeConfig, arguments)
    from sidrec.codec.completion import TextCodec  # after --help, which shall be fast

    codec = TextCodec.open(config.run_dir)
    sys.stdout.write(codec.decode(read_codes(given(config.codes), codec.codec.quantizer.sizes)) + "\n")


def read_codes(text: str, sizes: list[int]) -> torch.Tensor:
    """Codes int64 [T, D] of JSON. Raises InputError naming the latent that is none."""
    import torch

    try:
        latents = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"the codes are no JSON ({error}); give what `sidrec codec encode` prints.") from error
    if not isinstance(latents, list):
        raise InputError("the codes are no list; give what `sidrec codec encode` prints, such as [[3, 17], [5, 2]].")
    for number, latent in enumerate(latents, 1):
        whole = isinstance(latent, list) and len(latent) == len(sizes)
        if not whole or not all(
            type(code) is int and 0 <= code < size for code, size in zip(latent, sizes, strict=True)
        ):
            raise InputError(
                f"latent {number} of the codes is {json.dumps(latent)[:80]}; give {len(sizes)} whole numbers, below {sizes}."
            )
    return torch.tensor(latents, dtype=torch.int64).reshape(-1, len(sizes))


if __name__ == "__main__":
    run_as_command(main)

"""Print what follows a prompt: its latents go on, and are decoded.

sidrec codec complete --run_dir outputs/codec --prompt "The cat sat"
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from sidrec.codec.encode_text import given
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.ranges import check_least


@dataclass
class CompleteConfig:
    """Print what follows a prompt."""

    prompt: str = field(metadata={"help": "How the text begins; - reads it from standard input."})
    run_dir: Path = field(
        default=Path("outputs/codec"), metadata={"help": "Run directory with text/, codec/ and codec_transformer/."}
    )
    n_tokens: int = field(default=64, metadata={"help": "Most tokens to write; fewer where the document ends."})
    temperature: float = field(default=0.8, metadata={"help": "0: the likeliest code each time; 1: as the model says."})
    top_k: int = field(default=50, metadata={"help": "Draw from so many of the likeliest codes; 0 = all."})
    seed: int = field(default=0, metadata={"help": "What codes are drawn by."})
    stream: bool = field(default=False, metadata={"help": "Print as soon as a latent is written."})

    def __post_init__(self) -> None:
        check_least(self, "n_tokens", 1)
        check_least(self, "seed", 0)
        for name, least in (("temperature", 0.0), ("top_k", 0)):
            check_least(self, name, least)


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(CompleteConfig, arguments)
    import torch

    from sidrec.codec.completion import TextCodec
    from sidrec.codec.generation import Sampling

    codec, prompt = TextCodec.open(config.run_dir, completes=True), given(config.prompt)
    sampling, generator = (
        Sampling(config.temperature, config.top_k),
        torch.Generator().manual_seed(config.seed),
    )
    if not config.stream:
        (answer,) = codec.complete([prompt], config.n_tokens, sampling, generator)
        sys.stdout.write(prompt + answer + "\n")
        return
    sys.stdout.write(prompt)
    for piece in codec.stream(prompt, config.n_tokens, sampling, generator):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    run_as_command(main)

"""`sidrec codec encode`, `decode` and `complete`: a trained codec on one's own text."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.ranges import check_least

if TYPE_CHECKING:
    import torch

RUN_DIR = "Run directory with text/ and codec/."


@dataclass
class EncodeConfig:
    """Print the codes of a text, a JSON list of latents, each a list of codes."""

    text: str = field(metadata={"help": "The text; - reads it from standard input."})
    run_dir: Path = field(default=Path("outputs/codec"), metadata={"help": RUN_DIR})


@dataclass
class DecodeConfig:
    """Print the text of codes."""

    codes: str = field(metadata={"help": "What `sidrec codec encode` prints; - reads it from standard input."})
    run_dir: Path = field(default=Path("outputs/codec"), metadata={"help": RUN_DIR})


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


def encode(arguments: list[str] | None = None) -> None:
    config = parse_config(EncodeConfig, arguments)
    from sidrec.codec.completion import TextCodec  # after --help, which shall be fast

    codes = TextCodec.open(config.run_dir).encode(given(config.text))
    sys.stdout.write(json.dumps(codes.tolist()) + "\n")


def decode(arguments: list[str] | None = None) -> None:
    config = parse_config(DecodeConfig, arguments)
    from sidrec.codec.completion import TextCodec

    codec = TextCodec.open(config.run_dir)
    sys.stdout.write(codec.decode(read_codes(given(config.codes), codec.codec.quantizer.sizes)) + "\n")


def complete(arguments: list[str] | None = None) -> None:
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


def given(text: str) -> str:
    """The text, or standard input's where it is -."""
    return sys.stdin.read() if text == "-" else text


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

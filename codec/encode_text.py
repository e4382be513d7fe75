"""Print the codes of a text.

sidrec codec encode --run_dir outputs/codec --text "The cat sat on the mat."
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config


@dataclass
class EncodeConfig:
    """Print the codes of a text, a JSON list of latents, each a list of codes."""

    text: str = field(metadata={"help": "The text; - reads it from standard input."})
    run_dir: Path = field(default=Path("outputs/codec"), metadata={"help": "Run directory with text/ and codec/."})


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(EncodeConfig, arguments)
    from sidrec.codec.completion import TextCodec  # after --help, which shall be fast

    codes = TextCodec.open(config.run_dir).encode(given(config.text))
    sys.stdout.write(json.dumps(codes.tolist()) + "\n")


def given(text: str) -> str:
    """The text, or standard input's where it is -."""
    return sys.stdin.read() if text == "-" else text


if __name__ == "__main__":
    run_as_command(main)

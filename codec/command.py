"""The commands of the codec: `sidrec codec WORD`, one word for each.

sidrec codec text --documents corpus --run_dir outputs/codec
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from sidrec.pipeline.config import HELP_ALL, HELP_FLAGS
from sidrec.pipeline.errors import InputError


class Word(NamedTuple):
    """module: what is run, by its `main(arguments)`."""

    module: str
    help: str


WORDS = {
    "text": Word("sidrec.codec.prepare_text", "split documents and write them as rows of tokens"),
    "encode": Word("sidrec.codec.encode_text", "print the codes of a text"),
    "decode": Word("sidrec.codec.decode_codes", "print the text of codes"),
    "complete": Word("sidrec.codec.complete_text", "go on from a prompt in latent space"),
    "items": Word("sidrec.codec.item_latents", "write a run's items as vectors and codes, and what the codes say"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in (*HELP_FLAGS, HELP_ALL):
        sys.stdout.write(usage())
        return
    name, *rest = words
    if name not in WORDS:
        raise InputError(f"sidrec codec has no command {name!r}; it has {', '.join(WORDS)}.")
    importlib.import_module(WORDS[name].module).main(rest)


def usage() -> str:
    """What `sidrec codec --help` prints."""
    width = max(map(len, WORDS))
    rows = "\n".join(f"  {name:<{width}}  {word.help}" for name, word in WORDS.items())
    return f"usage: sidrec codec COMMAND [flags]; sidrec codec COMMAND --help explains the flags\n\n{rows}\n"

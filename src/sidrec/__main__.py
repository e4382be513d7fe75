"""The command `sidrec`: one word for each stage and tool, loaded when it is asked for.

sidrec prepare --dataset demo
sidrec evaluate --help
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import HELP_FLAGS
from sidrec.pipeline.errors import InputError


class Command(NamedTuple):
    """modules: run one after the other, each by its `main(arguments)`, which prints the help before it imports what takes long."""

    modules: tuple[str, ...]
    help: str


COMMANDS = {
    "prepare": Command(
        ("sidrec.data.prepare",), "read a catalogue and a log, filter and split them"
    ),
    "tokenize": Command(
        ("sidrec.tokenizer.embed", "sidrec.tokenizer.quantize"), "make item vectors, and semantic IDs of them"
    ),
    "evaluate": Command(("sidrec.evaluation.evaluate",), "measure Recall@K of the models beside baselines"),
    "compare": Command(("sidrec.serving.compare_models",), "compare two models, or two rows of tables, case by case"),
    "off-policy": Command(("sidrec.evaluation.policy_value",), "estimate what a model's lists would earn, from served ones"),
    "recommend": Command(("sidrec.serving.recommend",), "recommend for a user or a history of items"),
    "ask": Command(("sidrec.serving.ask",), "ask a language model for items in words"),
    "serve": Command(("sidrec.serving.serve",), "serve a bundle over HTTP: lists, items, events"),
    "bundle": Command(("sidrec.serving.make_bundle",), "put what recommending needs into one folder, to be copied"),
    "update": Command(("sidrec.serving.update",), "join new events, train the model further, keep it unless it is worse"),
    "drift": Command(("sidrec.serving.drift",), "how far a store's events moved from the training, and whether to train"),
    "export": Command(("sidrec.serving.export",), "write a model as GGUF or ONNX, for other tools"),
    "import-events": Command(("sidrec.serving.import_events",), "store the rows of an old log as events"),
    "export-events": Command(("sidrec.serving.export_events",), "write a store's events as a log that prepare reads"),
    "export-lists": Command(("sidrec.serving.export_lists",), "write a store's drawn lists as a log that off-policy reads"),
    "keys": Command(("sidrec.serving.keys",), "make, revoke and list the keys of the service"),
    "compare-sids": Command(("sidrec.tokenizer.compare",), "put several sets of semantic IDs side by side"),
    "add-items": Command(("sidrec.serving.add_items",), "add items of a file to a bundle, or change them"),
    "remove-items": Command(("sidrec.serving.remove_items",), "take items out of a bundle"),
    "catalogue": Command(("sidrec.serving.catalogue",), "list the versions of a bundle's catalogue, or go back"),
    "codec": Command(("sidrec.codec.command",), "text as latent codes and back; sidrec codec --help lists its commands"),
    "env": Command(("sidrec.pipeline.env",), "print versions and machine, to paste into a bug report"),
}
TRAINING = """Training is started by accelerate:
  accelerate launch -m sidrec.sft.train    in a checkout: accelerate launch sft/train.py
  accelerate launch -m sidrec.rl.grpo      in a checkout: accelerate launch rl/grpo.py"""


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in HELP_FLAGS:
        sys.stdout.write(usage())
        return
    name, *rest = words
    if name not in COMMANDS:
        raise InputError(f"sidrec has no command {name!r}; it has {', '.join(COMMANDS)}.")
    for module in COMMANDS[name].modules:
        importlib.import_module(module).main(rest)


def usage() -> str:
    """What `sidrec --help` prints."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    return f"usage: sidrec COMMAND [flags]; sidrec COMMAND --help explains the flags\n\n{rows}\n\n{TRAINING}\n"


def run() -> None:
    """The installed command."""
    run_as_command(main)


if __name__ == "__main__":
    run()

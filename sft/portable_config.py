"""config.json and tokenizer_config.json of a finished folder, for transformers 4.5x and 5.x alike.

transformers 5 writes rotary settings as `rope_parameters` and names a tokenizer class that 4.5x does not know. 4.5x would take its default
base, another model without a word, and refuse the tokenizer. So its names are written beside those of 5, with the same values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidrec.pipeline.files import read_json, write_json

FAST_TOKENIZER = {"TokenizersBackend": "PreTrainedTokenizerFast"}  # class of transformers 5, and its name in both


def make_portable(folder: Path) -> None:
    """Rewrite the two files of a model's folder in place; a file that is not there is passed over."""
    config, tokenizer = folder / "config.json", folder / "tokenizer_config.json"
    if config.is_file():
        written = read_json(config)
        write_json(config, written | older_rope(written.get("rope_parameters")))
    if tokenizer.is_file():
        written = read_json(tokenizer)
        name = written.get("tokenizer_class")
        write_json(tokenizer, written | {"tokenizer_class": FAST_TOKENIZER.get(name, name)})


def older_rope(parameters: Any) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and, of models with two kinds of layers (Gemma 3), `rope_local_base_freq`; nothing of a model that turns
    no positions."""
    if not isinstance(parameters, dict):
        return {}
    if "full_attention" in parameters:  # by kind of layer
        local = parameters.get("sliding_attention") or {}
        older = older_rope(parameters["full_attention"])
        return older | ({"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {})
    if "rope_theta" not in parameters:
        return {}
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    return {
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": None if scaling.get("rope_type", "default") == "default" else scaling,
    }

"""The card of a trained model (README.md of its folder): what it is, how to use it, what it was made from, what it reached.

Made from the run directory's files alone, so that it says what they say; it holds no clock time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import safe_open
from transformers import AutoTokenizer

from sidrec.decoding.renderer import Renderer
from sidrec.decoding.rq_transformer.configuration import RqTransformerConfig
from sidrec.decoding.trie_file import SIDS_FOLDER
from sidrec.evaluation.model_cards import CARD, NOT_MEASURED, results_part
from sidrec.pipeline.files import atomic_path, read_json
from sidrec.pipeline.provenance import code_version
from sidrec.sft.base_model import BaseModel
from sidrec.tokenizer.semantic_ids import SemanticIds

STAGES = {"sft": "supervised fine-tuning (SFT)", "rl": "supervised fine-tuning and GRPO with recall rewards (RL)"}


def write_model_card(folder: Path) -> None:
    """Write README.md into a run directory's `sft` or `rl`, whose model, SIDs, renderer, manifest and valid.json are there."""
    run_dir, stage = folder.parent, folder.name
    manifest = _read(folder / "manifest.json")
    data = _read(run_dir / "data" / "dataset.json")
    sids = SemanticIds.read(folder / SIDS_FOLDER)
    renderer = Renderer.load(folder, sids)
    base = _read(run_dir / "sft" / "manifest.json")["fingerprint"]["model_name_or_path"]
    parts = [
        f"---\n{header(base, stage)}---",
        f"# A generative recommender of {data['name']}, by {stage}",
        introduction(folder, base, stage, sids),
        f"## Use\n\n{usage(folder, renderer)}",
        f"## Intended use and limits\n\n{limits(folder, renderer)}",
        f"## Licences\n\n{licences(base, data['name'])}",
        f"## Data and semantic IDs\n\n{data_table(data, sids, run_dir)}",
        f"## Results\n\nOn valid, seen items left out, at each measurement of the training:\n\n"
        f"{valid_table(_read(folder / 'valid.json'))}\n\nOn test:\n\n{results_part(NOT_MEASURED)}",
        f"## Training\n\n{training_part(manifest)}",
    ]
    with atomic_path(folder / CARD) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def header(base: str | None, stage: str) -> str:
    """The YAML that the hub reads. No licence: that is for whoever publishes the model to choose."""
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["recommendation", "generative-recommender", "semantic-ids", "sidrec", stage],
    }
    name = None if base is None else BaseModel.of(base).name
    if name is not None:
        fields["base_model"] = name
    return yaml.safe_dump(fields, sort_keys=False) + "# license: choose one before you publish\n"


def introduction(folder: Path, base: str | None, stage: str, sids: SemanticIds) -> str:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (it is not a dictionary)
    parameters = sum(int(np.prod(shape)) for shape in shapes)
    made = "an RQ-Transformer" if is_rq_transformer(folder) else "a Qwen3"
    origin = BaseModel.of(base).in_words() if base else f"{made} made from scratch"
    if base and is_rq_transformer(folder):
        origin += ", its decoder with one position an item in an RQ-Transformer,"
    return (
        f"A causal language model of {parameters / 1e6:.2f}M parameters, {origin} with the tokens of semantic IDs added to its "
        f"vocabulary, trained by {STAGES[stage]}. Every one of {sids.n_items} items is written as {sids.n_levels} tokens, "
        f"`{sids.text(0)}` for the first; given a history of items the model writes the next one, under a constraint that lets it "
        "write only items that exist."
    )


def is_rq_transformer(folder: Path) -> bool:
    return _read(folder / "config.json")["model_type"] == RqTransformerConfig.model_type


def usage(folder: Path, renderer: Renderer) -> str:
    """Two examples that run as they stand, in this folder."""
    n_items = len(renderer.codes)
    history = list(range(min(2, n_items)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.decode(renderer.tokens(np.array(history)))
    with_transformers = one_code(prompt) if is_rq_transformer(folder) else whole_items(prompt, min(10, n_items))
    return f"""{with_transformers}

As a recommender, with sidrec, whose search writes items that exist and have not been seen. An item is its number: the row of
`items.parquet` of the data.

```python
from pathlib import Path

import numpy as np

from sidrec.decoding.recommender import Recommender

recommender = Recommender.from_folder(Path("."))  # or Path(huggingface_hub.snapshot_download("OWNER/NAME"))
history = np.array({history})  # items, oldest first
lists = recommender.recommend([history], k={min(10, n_items - len(history))}, exclude_seen=True)
print(lists.items[0], lists.log_probs[0])
```"""


def whole_items(prompt: str, k: int) -> str:
    """How transformers alone writes items, under the constraint that lies in the folder."""
    return f"""As a language model, with transformers alone, under the constraint that lies in this folder: without it the model may write
words, and semantic IDs that no item has. `SidConstraint` also serves vLLM and SGLang; the head of its file says how.

```python
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder; of a repository on the hub: huggingface_hub.snapshot_download("OWNER/NAME")
sys.path.insert(0, folder)
from sid_logits_processor import SidConstraint

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
constraint = SidConstraint(folder)
prompt = tokenizer({prompt!r}, add_special_tokens=False, return_tensors="pt")
length = prompt.input_ids.shape[1]
search = constraint.beam_search({k}, length)  # items of the history are not left out
rows = model.generate(prompt.input_ids, attention_mask=prompt.attention_mask, **search)
for tokens in rows[:, length:].tolist():
    print(constraint.item_of(tokens), tokenizer.decode(tokens))
```"""


def one_code(prompt: str) -> str:
    """How transformers asks a model of sidrec's own kind."""
    return f"""As a language model, with transformers, to which sidrec adds the kind of model:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

import sidrec.decoding.rq_transformer.model  # makes the model's kind known to transformers

folder = "."  # this folder, or the repository's name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = tokenizer({prompt!r}, add_special_tokens=False, return_tensors="pt")
next_token = model(input_ids=prompt.input_ids).logits[0, -1].argmax()
print(tokenizer.decode(next_token))
```"""


def limits(folder: Path, renderer: Renderer) -> str:
    """What the model is for, and what it cannot do."""
    words = [
        f"It recommends the next item of a history in this one catalogue of {len(renderer.codes)} items.",
        "It knows no item that was not in the catalogue when it was trained (new items can be given semantic IDs, not training).",
        f"It reads the {renderer.max_items} newest items of a history, in their order: no times, ratings or features of users.",
        "It repeats what the log holds: popular items come often, and what a user was shown decided what they could take. Figures of the "
        "results are those of logged interactions, not of a trial with users.",
        "Its probabilities are of the next logged interaction; they say nothing of quality, safety or suitability.",
    ]
    if not is_rq_transformer(folder):
        words.append(
            "It is no chat model. Without a mask over tokens it may write words in an item's place; a grammar over text is no such mask, "
            "since pieces of words can spell a semantic ID's token."
        )
    return "\n".join(f"* {sentence}" for sentence in words)


def licences(base: str | None, data: str) -> str:
    """Of the weights that training began with, of the data, and of this model."""
    began = (
        f"The weights began as {BaseModel.of(base).in_words()}."
        if base
        else "The weights were made from scratch; no other model's are in them."
    )
    return (
        f"{began} The data ({data}) have the terms of whoever publishes them, which are not part of this folder. This model's own licence "
        "is for whoever publishes it to choose, within both."
    )


def data_table(data: dict[str, Any], sids: SemanticIds, run_dir: Path) -> str:
    made = _read(run_dir / "sid" / "manifest.json")["fingerprint"]
    sizes = " × ".join(map(str, sids.level_sizes))
    rows = {"data": data["name"], "protocol": data.get("protocol", "the user's own")} | data.get("counts", {})
    rows |= {
        "semantic IDs": f"{sizes} codes, made by {made.get('quantizer', 'another program')}",
        "their sha256": sids.digest,
    }
    return _table(["", ""], [[name, str(value)] for name, value in rows.items()])


def valid_table(measured: list[dict[str, Any]]) -> str:
    rows = [[str(row["step"]), f"{row['eval_recall@10']:.4f}", f"{row['eval_ndcg@10']:.4f}"] for row in measured]
    return _table(["step", "Recall@10", "NDCG@10"], rows)


def training_part(manifest: dict[str, Any]) -> str:
    made_by = ", ".join(f"{name} {version}" for name, version in sorted(manifest["packages"].items()))
    chosen = dict(manifest["fingerprint"])
    if (base := chosen.get("model_name_or_path")) is not None and Path(base).is_dir():
        chosen["model_name_or_path"] = BaseModel.of(base).name or "a local folder"
    settings = yaml.safe_dump(chosen, sort_keys=True, allow_unicode=True)
    inputs = "\n".join(f"* `{path}` sha256 `{digest}`" for path, digest in sorted(manifest["inputs"].items()))
    return f"With {made_by}, by the code of {code_version()}. From\n\n{inputs}\n\nby these settings:\n\n```yaml\n{settings}```"


def _table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read(path: Path) -> Any:
    return read_json(path)

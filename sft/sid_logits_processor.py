"""Semantic IDs and nothing else: the constraint of a model's folder for transformers, vLLM and SGLang. A copy lies in every such folder.

It needs numpy and torch, no part of sidrec and of no engine. It reads `semantic_ids/trie.safetensors` (which codes follow which),
`sidrec.json` (which tokens they are) and `config.json` (the end token). For models with one position a token, which write an item as
its codes one after the other.

    transformers   model.generate(prompts, attention_mask=mask, **SidConstraint().beam_search(10, prompts.shape[1]))
    vLLM           SidConstraint() is a logits processor of one request: (prompt_token_ids, token_ids, logits) → logits
    SGLang         mask_requests(logits, custom_param_list) is the body of a CustomLogitProcessor's __call__

What is returned are log-probabilities over what may come next; -inf elsewhere. After the last code, and where no item begins with what
has been written, the end token alone may come, at no cost: so no row is without a token, and `item_of` tells which rows are items.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
FORMATS = {"trie": 1, "sidrec.json": 2}  # what this file reads
TYPES = {"I16": np.int16, "I32": np.int32}
BLOCK = 256  # pointers of the trie file that share one base


class SidConstraint:
    """folder: of the model; default: the one that this file lies in. eos_token: default: of config.json."""

    def __init__(self, folder: str | Path = HERE, eos_token: int | None = None) -> None:
        folder = Path(folder)
        renderer = json.loads((folder / "sidrec.json").read_text(encoding="utf-8"))
        if renderer["format_version"] != FORMATS["sidrec.json"]:
            raise ValueError(
                f"{folder / 'sidrec.json'} has another format; take the sid_logits_processor.py beside it."
            )
        self.normaliser: str = renderer["normaliser"]
        self.first_tokens: list[int] = renderer["vocabulary"]["first_tokens"]
        self.level_sizes: list[int] = renderer["vocabulary"]["level_sizes"]
        self.eos_token = _eos_token(folder) if eos_token is None else eos_token
        tables = _read_trie(folder / "semantic_ids" / "trie.safetensors")
        self.codes = [tables[f"code_{level}"] for level in range(self.n_levels)]
        self.first_child = [_pointers(tables, level) for level in range(self.n_levels)]
        self.item_of_leaf = tables["item_of_leaf"]

    @property
    def n_levels(self) -> int:
        """Tokens of an item."""
        return len(self.first_tokens)

    def allowed(self, written: Sequence[int]) -> np.ndarray:
        """int64: the tokens that may come next. written: those of the item so far, without the prompt."""
        node = self._node(written) if len(written) < self.n_levels else None
        if node is None:
            return np.array([self.eos_token])
        level = len(written)
        first, end = self.first_child[level][node : node + 2]
        return self.codes[level][first:end].astype(np.int64) + self.first_tokens[level]

    def item_of(self, written: Sequence[int]) -> int | None:
        """The item (its row of items.parquet) of a row's tokens after the prompt; None where they are no item."""
        node = self._node(written[: self.n_levels]) if len(written) >= self.n_levels else None
        return None if node is None else int(self.item_of_leaf[node])

    def _node(self, written: Sequence[int]) -> int | None:
        node = 0
        for level, token in enumerate(written):
            first, end = self.first_child[level][node : node + 2]
            code = int(token) - self.first_tokens[level]
            node = int(first + np.searchsorted(self.codes[level][first:end], code))
            if node == end or self.codes[level][node] != code:
                return None
        return node

    def masked(self, logits: Tensor, written: Sequence[int]) -> Tensor:
        """[V], of the type of `logits` [V] (logits or log-probabilities): log-probabilities of what may come next, -inf elsewhere.

        Normalised as the model was trained: over what may come (`children`), over the level's codes (`level`), or as given (`full`).
        """
        tokens = torch.from_numpy(self.allowed(written)).to(logits.device)
        output = torch.full_like(logits, -torch.inf)
        if int(tokens[0]) == self.eos_token:
            output[self.eos_token] = 0
            return output
        scores = logits.float()
        if self.normaliser == "level":
            first = self.first_tokens[len(written)]
            scores = scores - scores[first : first + self.level_sizes[len(written)]].logsumexp(0)
        chosen = scores[tokens]
        output[tokens] = (chosen.log_softmax(0) if self.normaliser == "children" else chosen).to(output.dtype)
        return output

    def __call__(self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], logits: Tensor) -> Tensor:
        """[V]: for one request, as vLLM calls it: token_ids are those that it has written, logits [V]."""
        return self.masked(logits, token_ids)

    def beam_search(self, k: int, prompt_length: int) -> dict[str, Any]:
        """Arguments of transformers' `generate()` for the k most probable items, best first; whatever generation_config.json says.

        prompt_length: columns of the prompts, which are padded on the left to one length. Scores are `sequences_scores` times `n_levels`.
        """
        return {
            "logits_processor": [SidLogitsProcessor(self, prompt_length)],
            "num_beams": k,
            "num_return_sequences": k,
            "max_new_tokens": self.n_levels,
            "min_new_tokens": 0,
            "do_sample": False,
            "eos_token_id": self.eos_token,
            "pad_token_id": self.eos_token,
            "length_penalty": 1.0,
            "early_stopping": False,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "renormalize_logits": False,
        }


class SidLogitsProcessor:
    """For transformers' `logits_processor=[…]`. prompt_length: columns of the (left-padded) prompts, so that nothing is counted from call
    to call: any number of rows, of beams and of calls."""

    def __init__(self, constraint: SidConstraint, prompt_length: int) -> None:
        self.constraint, self.prompt_length = constraint, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[R, V]. input_ids: int64 [R, T], prompts and what is written. scores: [R, V]."""
        assert input_ids.shape[1] >= self.prompt_length, (
            f"prompts have {self.prompt_length} columns, not {input_ids.shape}"
        )
        written = input_ids[:, self.prompt_length :].tolist()
        return torch.stack([self.constraint.masked(row, tokens) for row, tokens in zip(scores, written, strict=True)])


def mask_requests(logits: Tensor, custom_param_list: list[dict[str, Any]] | None) -> Tensor:
    """[R, V]: `logits` [R, V], written to. custom_param_list: one dictionary a row, in which SGLang puts the request as `__req__`."""
    for row, parameters in enumerate(custom_param_list or []):
        if parameters and "__req__" in parameters:
            logits[row] = constraint_here().masked(logits[row], parameters["__req__"].output_ids)
    return logits


@cache
def constraint_here() -> SidConstraint:
    """The constraint of the folder that this file lies in, read once."""
    return SidConstraint()


def _eos_token(folder: Path) -> int:
    """Of config.json."""
    token = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id")
    token = token[0] if isinstance(token, list) and token else token
    if not isinstance(token, int):
        raise ValueError(f"{folder / 'config.json'} has no eos_token_id; give SidConstraint an eos_token.")
    return token


def _read_trie(path: Path) -> dict[str, np.ndarray]:
    """The tables of a trie file, by name, mapped and not read. It is a safetensors file: a length, a header, the numbers."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    about = json.loads(header.pop("__metadata__", {}).get("sidrec_trie", "{}"))
    if about.get("version") != FORMATS["trie"]:
        raise ValueError(
            f"{path} is no trie file of format {FORMATS['trie']}; take the sid_logits_processor.py beside it."
        )
    numbers = np.memmap(path, np.uint8, "r", offset=8 + length)
    return {name: numbers[slice(*entry["data_offsets"])].view(TYPES[entry["dtype"]]) for name, entry in header.items()}


def _pointers(tables: dict[str, np.ndarray], level: int) -> np.ndarray:
    """int64 [nodes + 1]: node n's children are those from entry n to entry n + 1."""
    base, low = tables[f"first_child_base_{level}"], tables[f"first_child_low_{level}"]
    wide = low.astype(np.int64)
    return np.repeat(base.astype(np.int64), BLOCK)[: len(low)] + (wide & 0xFFFF if low.dtype == np.int16 else wide)

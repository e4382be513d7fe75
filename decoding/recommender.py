"""`Recommender`: a trained model, its SIDs and the search, behind one call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from transformers import AutoModelForCausalLM, PreTrainedModel

from data.stage import InputError, require_finished
from decoding.beam_search import beam_search
from decoding.renderer import Renderer
from decoding.trie import SidTrie
from tokenizer.semantic_ids import SemanticIds

TOKENS_PER_BATCH = 16_384
FEWEST_BEAMS = 50  # so that the first 10 of 10 are the first 10 of 50
STAGE_COMMANDS = {"sft": "accelerate launch sft/train.py", "rl": "accelerate launch rl/grpo.py"}


@dataclass(frozen=True)
class Recommendations:
    """items: int64 [B, k], best first, distinct, -1 where fewer are reachable; log_probs: float32 [B, k], -inf there."""

    items: np.ndarray
    log_probs: np.ndarray


@dataclass(frozen=True)
class Recommender:
    model: PreTrainedModel
    renderer: Renderer
    trie: SidTrie

    @classmethod
    def load(cls, run_dir: Path, stage: str) -> Recommender:
        """The model of a finished stage, "sft" or "rl". Raises InputError when it is missing or its SIDs have changed."""
        folder = require_finished(run_dir, stage, f"{STAGE_COMMANDS[stage]} --run_dir {run_dir}")
        sids = SemanticIds.load(run_dir)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        return cls.build(model, Renderer.load(folder, sids), sids)

    @classmethod
    def build(cls, model: PreTrainedModel, renderer: Renderer, sids: SemanticIds) -> Recommender:
        trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
        return cls(model, renderer, trie.to(model.device))

    def recommend(
        self, histories: list[np.ndarray], k: int, exclude_seen: bool, progress: str | None = None
    ) -> Recommendations:
        """The k most probable next items of every history.

        histories: item indices, oldest first. exclude_seen: leave out the items of the history, inside the search, so that k
        results are k unseen items. progress: a label for a progress bar. Fewer than k come back only when fewer exist.
        Raises InputError for an empty history or an item outside the catalogue.
        """
        for row, history in enumerate(histories):
            if len(history) == 0:
                raise InputError(f"history {row} is empty; a recommendation needs at least one item.")
            if min(history) < 0 or max(history) >= self.trie.n_items:
                raise InputError(f"history {row} holds an item outside the catalogue of {self.trie.n_items} items.")
        items = np.full((len(histories), k), -1, dtype=np.int64)
        log_probs = np.full((len(histories), k), -np.inf, dtype=np.float32)
        batches = self._batches(histories)
        for rows in track(batches, description=progress or "", disable=progress is None, transient=True):
            batch = [histories[row] for row in rows]
            input_ids, attention_mask = (tensor.to(self.model.device) for tensor in self.renderer.batch(batch))
            eligible = self._unseen(batch) if exclude_seen else None
            found = beam_search(
                self.model,
                input_ids,
                attention_mask,
                self.renderer.vocabulary,
                self.trie,
                max(k, FEWEST_BEAMS),
                eligible=eligible,
            )
            width = min(k, found.items.shape[1])
            items[rows, :width] = found.items[:, :width].cpu().numpy()
            log_probs[rows, :width] = found.log_probs[:, :width].cpu().numpy()
        return Recommendations(items, log_probs)

    def _batches(self, histories: list[np.ndarray]) -> list[list[int]]:
        """Row numbers in batches of similar length, each of at most TOKENS_PER_BATCH padded tokens (or one row)."""
        lengths = [1 + min(len(history), self.renderer.max_items) * self.trie.n_levels for history in histories]
        batches: list[list[int]] = []
        for row in sorted(range(len(histories)), key=lambda i: (lengths[i], i)):
            if batches and (len(batches[-1]) + 1) * lengths[row] <= TOKENS_PER_BATCH:
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches

    def _unseen(self, histories: list[np.ndarray]) -> torch.Tensor:
        eligible = torch.ones(len(histories), self.trie.n_items, dtype=torch.bool, device=self.model.device)
        for row, history in enumerate(histories):
            eligible[row, torch.as_tensor(history)] = False
        return eligible

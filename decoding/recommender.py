"""`Recommender`: a trained model, its SIDs and the search behind one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from sidrec.decoding.beam_search import beam_search
from sidrec.decoding.beams import Beams
from sidrec.decoding.catalogue import LiveCatalogue, Snapshot
from sidrec.decoding.chosen_items import chosen_log_probs
from sidrec.decoding.depth_search import depth_search_scores
from sidrec.decoding.diversity import diverse_search
from sidrec.decoding.eligibility import AllowList, Eligibility
from sidrec.decoding.exhaustive import leaf_log_probs
from sidrec.decoding.item_indices import at_least_one, item_histories, item_indices
from sidrec.decoding.leaf_search import leaf_search
from sidrec.decoding.product import Expert
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.rq_transformer.model import rq_transformer_of
from sidrec.decoding.shared_prefix import check_decoder
from sidrec.decoding.trie import SidTrie
from sidrec.decoding.trie_file import SIDS_FOLDER, TRIE_FILE, open_trie
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import require_finished
from sidrec.tokenizer.semantic_ids import SemanticIds

TOKENS_PER_BATCH = 16_384
SCORES_PER_BATCH = 1 << 26  # 256 MB
MOST_SCORED = 50_000  # items of a catalogue that an RQ-Transformer scores whole instead of searching it
DIVERSE_TIMES = 4  # as many items as are asked for are searched at first where few may share a first code
FEWEST_BEAMS = 50  # so that the first 10 of 10 are the first 10 of 50
STAGE_COMMANDS = {"sft": "accelerate launch sft/train.py", "rl": "accelerate launch rl/grpo.py"}


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Without transformers' bar of the weights, which are loaded in no time."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class Recommendations:
    """items: int64 [B, k], best first, distinct, -1 where fewer are reachable; log_probs: float32 [B, k], -inf there. reachable:
    int64 [B], how many items could have been recommended; a row holds min(k, reachable) of them."""

    items: np.ndarray
    log_probs: np.ndarray
    reachable: np.ndarray


@dataclass(frozen=True)
class _Search:
    """How every batch of a call is searched: for k items, in `width` beams or exactly, of those allowed."""

    k: int
    width: int
    exact: bool
    exclude_seen: bool
    allowed: AllowList | None


@dataclass(frozen=True)
class Recommender:
    """Any number of threads may ask it while others change its catalogue: a call takes one snapshot and keeps it to its end.

    renderer: as the model was trained; the histories of a call are rendered with the codes of its snapshot. catalogue: insert items
    under new SIDs, remove items, make allow-lists. A removed item is not recommended, and may still stand in histories. expert: a memory
    whose product with π is recommended by; None: π alone.
    """

    model: PreTrainedModel
    renderer: Renderer
    catalogue: LiveCatalogue
    expert: Expert | None = None

    @property
    def trie(self) -> SidTrie:
        """The catalogue's trie at this moment."""
        return self.catalogue.snapshot.trie

    @classmethod
    def load(cls, run_dir: Path, stage: str) -> Recommender:
        """The model of a finished stage, "sft" or "rl". Raises InputError when it is missing or its SIDs have changed."""
        folder = require_finished(run_dir, stage, f"{STAGE_COMMANDS[stage]} --run_dir {run_dir}")
        Renderer.load(folder, SemanticIds.load(run_dir))  # refuses a run whose SIDs are not the model's
        return cls.from_folder(folder)

    @classmethod
    def from_folder(cls, folder: Path) -> Recommender:
        """The model of a folder alone, wherever it was copied to: it holds its own semantic IDs, and the trie in a file that is mapped.

        Raises InputError when a part of it is missing.
        """
        sids = SemanticIds.read(folder / SIDS_FOLDER)
        renderer = Renderer.load(folder, sids)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with no_progress_bar():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        check_decoder(model, renderer.vocabulary)
        return cls(model, renderer, LiveCatalogue(open_trie(folder / SIDS_FOLDER / TRIE_FILE).to(model.device)))

    @classmethod
    def build(cls, model: PreTrainedModel, renderer: Renderer, sids: SemanticIds) -> Recommender:
        """Raises InputError when the model is of a kind that decoding cannot continue from a shared prompt."""
        check_decoder(model, renderer.vocabulary)
        trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
        return cls(model, renderer, LiveCatalogue(trie.to(model.device)))

    def recommend(
        self,
        histories: list[np.ndarray],
        k: int,
        exclude_seen: bool,
        progress: Callable[[int], object] | None = None,
        beams: int = FEWEST_BEAMS,
        exact: bool = False,
        allow: str | None = None,
        allowed: np.ndarray | None = None,
        diversity: int | None = None,
    ) -> Recommendations:
        """The k most probable next items of every history: min(k, reachable) of them, distinct, best first.

        histories: item indices, oldest first. exclude_seen: leave out the items of the history, inside the search, so that k
        results are k unseen items. progress: called after each batch with its number of histories. beams: width of the search, raised to k
        where it is less: a search of k beams finds k items where there are k (see `sidrec.decoding.beam_search`). exact: score the whole
        catalogue instead of searching; catalogues of up to MOST_SCORED items are scored by an RQ-Transformer, and with an expert, anyway.
        allow: the name of one of the catalogue's allow-lists; only its items are recommended. allowed: bool [n], by item index: of this
        call, the items that may be recommended, none beyond its end. diversity: the most items of a list that may share their first code
        (see `sidrec.decoding.diversity`). Of equal scores, the item whose SID is first in order comes first.
        Raises InputError for a k, beams or diversity below 1, an unknown allow-list, an empty history or an item that never was in the
        catalogue.
        """
        k, beams, histories = at_least_one(k, "k"), at_least_one(beams, "beams"), item_histories(histories)
        diversity = None if diversity is None else at_least_one(diversity, "diversity")
        snapshot = self.catalogue.snapshot  # once: what changes from here on is for later calls
        listed = _allow_list(snapshot, allow, allowed)
        _check(histories, snapshot)
        items = np.full((len(histories), k), -1, dtype=np.int64)
        log_probs = np.full((len(histories), k), -np.inf, dtype=np.float32)
        reachable = np.zeros(len(histories), dtype=np.int64)
        scorer, trie = rq_transformer_of(self.model), snapshot.trie
        exact = exact or (trie.n_items <= MOST_SCORED and (scorer is not None or self.expert is not None))
        several = k if diversity is None else min(max(DIVERSE_TIMES * k, beams), trie.n_items)
        width = several if exact else max(several, beams)
        search = _Search(several, width, exact, exclude_seen, listed)
        scores = trie.n_items if exact else 1 if scorer is None else depth_search_scores(scorer.depth, trie, width)
        for rows in self.batches(histories, max(1, SCORES_PER_BATCH // scores)):
            best = self._lists(snapshot, [histories[row] for row in rows], search, k, diversity)
            width_found = min(k, best.items.shape[1])
            items[rows, :width_found] = best.items[:, :width_found].cpu().numpy()
            log_probs[rows, :width_found] = best.log_probs[:, :width_found].cpu().numpy()
            reachable[rows] = best.reachable.cpu().numpy()
            if progress is not None:
                progress(len(rows))
        return Recommendations(items, log_probs, reachable)

    def _lists(
        self, snapshot: Snapshot, histories: list[np.ndarray], search: _Search, k: int, diversity: int | None
    ) -> Beams:
        """The lists of one batch: k items each, or more."""
        trie, allowed = snapshot.trie, search.allowed
        excluded = histories if search.exclude_seen else None
        if diversity is None:
            eligible = None
            if excluded is not None or allowed is not None:
                eligible = Eligibility(trie, len(histories), excluded, allowed)
            return self._best(snapshot, histories, eligible, search)
        return diverse_search(
            lambda rows, eligible: self._best(snapshot, [histories[row] for row in rows], eligible, search),
            trie,
            excluded or [np.zeros(0, np.int64)] * len(histories),
            allowed,
            k,
            diversity,
        )

    def _best(
        self, snapshot: Snapshot, histories: list[np.ndarray], eligible: Eligibility | None, search: _Search
    ) -> Beams:
        """The best items of one batch: exactly by scoring every item, or by a search in beams; k of them with an expert."""
        trie, rules = snapshot.trie, (self.renderer.vocabulary, snapshot.trie)
        prompts, normaliser = self._prompts(snapshot, histories), self.renderer.normaliser
        proposals = None if self.expert is None else self.expert.proposals(histories, trie, search.exclude_seen)
        log_pi = None
        if search.exact:
            scores = leaf_log_probs(self.model, *prompts, *rules, normaliser)
            if proposals is not None:
                log_pi = scores.gather(1, proposals.leaves.clamp(min=0))
            best = leaf_search(scores, trie, search.width, eligible)
        else:
            best = beam_search(self.model, *prompts, *rules, search.width, eligible, normaliser=normaliser)
        if proposals is None:
            return best
        leaves = proposals.leaves.clamp(min=0)
        if log_pi is None:
            log_pi = chosen_log_probs(self.model, *prompts, *rules, leaves, normaliser)
        open_leaves = torch.ones_like(leaves, dtype=torch.bool) if eligible is None else eligible.contains(leaves)
        return proposals.joined(best, log_pi, open_leaves, trie, search.k)

    def log_probs_of(self, histories: list[np.ndarray], items: np.ndarray) -> np.ndarray:
        """float32 [B]: log π of one item a history (int64 [B]), each in the catalogue; nothing is searched."""
        histories, items = item_histories(histories), item_indices(items, "items")
        snapshot, log_probs = self.catalogue.snapshot, np.zeros(len(histories), np.float32)
        vocabulary, normaliser = self.renderer.vocabulary, self.renderer.normaliser
        scorer, trie = rq_transformer_of(self.model), snapshot.trie
        scores = 1 if scorer is None else depth_search_scores(scorer.depth, trie, 1)
        for rows in self.batches(histories, max(1, SCORES_PER_BATCH // scores)):
            prompts = self._prompts(snapshot, [histories[row] for row in rows])
            leaves = trie.leaf_of_item(torch.from_numpy(items[rows]).to(trie.device))[:, None]
            chosen = chosen_log_probs(self.model, *prompts, vocabulary, trie, leaves, normaliser)
            log_probs[rows] = chosen[:, 0].cpu().numpy()
        return log_probs

    def leaf_log_probs(self, histories: list[np.ndarray], snapshot: Snapshot | None = None) -> torch.Tensor:
        """float32 [B, N]: log π of the item at every leaf of the trie (`trie.item_of_leaf`), for histories of one batch.

        snapshot: whose trie; None: the catalogue's at this moment.
        """
        snapshot = self.catalogue.snapshot if snapshot is None else snapshot
        input_ids, attention_mask = self._prompts(snapshot, histories)
        vocabulary, normaliser = self.renderer.vocabulary, self.renderer.normaliser
        return leaf_log_probs(self.model, input_ids, attention_mask, vocabulary, snapshot.trie, normaliser)

    def _prompts(self, snapshot: Snapshot, histories: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        input_ids, attention_mask = self.renderer.with_codes(snapshot.codes).batch(histories)
        return input_ids.to(self.model.device), attention_mask.to(self.model.device)

    def batches(self, histories: list[np.ndarray], longest: int) -> list[list[int]]:
        """Row numbers in batches of similar length, each of at most TOKENS_PER_BATCH padded tokens (or one row), `longest` rows."""
        lengths = [self.renderer.prompt_length(len(history)) for history in histories]
        batches: list[list[int]] = []
        for row in sorted(range(len(histories)), key=lambda i: (lengths[i], i)):
            if batches and len(batches[-1]) < longest and (len(batches[-1]) + 1) * lengths[row] <= TOKENS_PER_BATCH:
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches


def _allow_list(snapshot: Snapshot, name: str | None, allowed: np.ndarray | None) -> AllowList | None:
    """Of a call: the items on the list of that name that are also allowed (bool [n], by item index); None: every item."""
    listed = None if name is None else snapshot.allow_list(name)
    if allowed is None:
        return listed
    by_slot = torch.zeros(snapshot.trie.n_slots, dtype=torch.bool)
    n = min(len(allowed), len(by_slot))
    by_slot[:n] = torch.from_numpy(np.asarray(allowed[:n], dtype=bool))
    both = AllowList(snapshot.trie, by_slot)
    return both if listed is None else both & listed


def _check(histories: list[np.ndarray], snapshot: Snapshot) -> None:
    for row, history in enumerate(histories):
        if len(history) == 0:
            raise InputError(f"history {row} is empty; a recommendation needs at least one item.")
        unknown = snapshot.never_held(torch.as_tensor(history))
        if len(unknown):
            raise InputError(
                f"history {row} holds item {int(unknown[0])}, which is outside the catalogue and never was in it; insert it first."
            )

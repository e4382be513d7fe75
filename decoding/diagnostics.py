"""What constrained decoding does to a model: the probability it leaks, the codes it is forced to, what its beams miss.

Leaked mass: the share of a softmax, over the whole vocabulary or over the level's codes, that falls on codes which do not exist
under the prefix. It is what an unconstrained decoder would waste; near 0, all normalisers rank alike. Forced codes: those that are
their prefix's only child. Beam regret: what the search's first k lack of the true first k (`sidrec.decoding.exhaustive`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.eligibility import Eligibility
from sidrec.decoding.exhaustive import beam_regret
from sidrec.decoding.policy import leaked_mass
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.rq_transformer.model import rq_transformer_of
from sidrec.decoding.shared_prefix import SharedPrefix
from sidrec.decoding.trie import SidTrie

MOST_POSITIONS = (
    1_000_000  # prefixes scored for the regret, over all histories: a minute or two of a small model on one core
)
HISTORIES_PER_BATCH = 16


@dataclass(frozen=True)
class Diagnosis:
    """histories: how many were looked at. leaked_full, leaked_level, forced: one share per level.

    leaked: E[1 - Σ of the softmax over the codes that exist], prefixes drawn from π. forced: share of the catalogue's items whose code
    at the level is its prefix's only child. k: of the regret, seen items left out. regret_histories: how many of the histories were
    scored exhaustively, 0 where the catalogue is too large; missed, lost_mass: mean share and probability of the true k that the
    search did not return, None where nothing was scored.
    """

    histories: int
    leaked_full: list[float]
    leaked_level: list[float]
    forced: list[float]
    k: int
    regret_histories: int
    missed: float | None
    lost_mass: float | None


def diagnose(
    recommender: Recommender,
    histories: list[np.ndarray],
    k: int,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> Diagnosis:
    """Diagnose the decoding of these histories (item indices, oldest first).

    progress: called after each batch with its number of histories.
    """
    generator = torch.Generator().manual_seed(seed)
    n_prefixes = sum(recommender.trie.n_nodes[1:-1]) or 1
    n_scored = min(len(histories), MOST_POSITIONS // n_prefixes)
    leaks, missed, lost = [], [], []
    starts = range(0, len(histories), HISTORIES_PER_BATCH)
    for start in starts:
        batch = histories[start : start + HISTORIES_PER_BATCH]
        leaks.append(leaked_mass_along_draws(recommender, batch, generator))
        scored = batch[: max(0, n_scored - start)]
        if scored:
            missed_share, lost_mass = regret(recommender, scored, k)
            missed.append(missed_share)
            lost.append(lost_mass)
        if progress is not None:
            progress(len(batch))
    full, level = torch.cat(leaks, dim=2).mean(2).tolist()
    return Diagnosis(
        histories=len(histories),
        leaked_full=full,
        leaked_level=level,
        forced=forced_share(recommender.trie),
        k=k,
        regret_histories=n_scored,
        missed=float(torch.cat(missed).mean()) if missed else None,
        lost_mass=float(torch.cat(lost).mean()) if lost else None,
    )


@torch.inference_mode()
def leaked_mass_along_draws(
    recommender: Recommender, histories: list[np.ndarray], generator: torch.Generator
) -> Tensor:
    """float32 [2, L, B]: what the full and the level's softmax leak at each level, along one item drawn from π for each history."""
    renderer, trie, device = recommender.renderer, recommender.trie, recommender.model.device
    if rq_transformer_of(recommender.model) is not None:  # it gives codes that do not exist no probability
        return torch.zeros(2, trie.n_levels, len(histories))
    input_ids, attention_mask = (tensor.to(device) for tensor in renderer.batch(histories))
    prefix = SharedPrefix(recommender.model, input_ids, attention_mask)
    hidden = prefix.hidden[:, 0]
    nodes = torch.zeros(len(histories), dtype=torch.long, device=device)
    leaks = []
    for level in range(trie.n_levels):
        logits = renderer.vocabulary.level_logits(hidden, prefix.head, level)
        exists = trie.children_mask(level, nodes)
        log_totals = torch.stack([prefix.head.log_sum(hidden), logits.logsumexp(1)])
        leaks.append(leaked_mass(logits, exists, log_totals))
        codes = logits.masked_fill(~exists, -torch.inf).softmax(1).cpu().multinomial(1, generator=generator).to(device)
        nodes = trie.child(level, nodes, codes[:, 0])
        if level + 1 < trie.n_levels:
            attends_to = torch.ones(len(nodes), 1, level + 1, dtype=torch.bool, device=device)
            hidden = prefix.extend(codes + renderer.vocabulary.first_tokens[level], attends_to, depth=level + 1)[:, 0]
    return torch.stack(leaks, dim=1).clamp(min=0).cpu()


def forced_share(trie: SidTrie) -> list[float]:
    """Per level, the share of the items whose code is the only one that exists under its prefix."""
    shares = []
    for level in range(trie.n_levels):
        is_single = trie.first_child[level][:].diff() == 1
        leaves = trie.first_leaf[level][:].diff()
        shares.append(float(leaves[is_single].sum()) / trie.n_items)
    return shares


@torch.inference_mode()
def regret(recommender: Recommender, histories: list[np.ndarray], k: int) -> tuple[Tensor, Tensor]:
    """What `recommend`'s first k unseen items miss of the true ones: share and probability, both float32 [B]."""
    trie = recommender.trie
    items = torch.from_numpy(recommender.recommend(histories, k, exclude_seen=True).items).to(trie.device)
    leaves = trie.leaf_of_item(items.clamp(min=0)).masked_fill(items < 0, -1)
    unseen = Eligibility(trie, len(histories), excluded=histories).leaves()
    lost = beam_regret(recommender.leaf_log_probs(histories).masked_fill(~unseen, -torch.inf), leaves)
    return lost.missed.cpu(), lost.mass.cpu()

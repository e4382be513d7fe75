"""Search where one state has scored every item: the best leaves, or a draw of them without replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from sidrec.decoding.beams import Beams, best_first, draws_of, refuse_nan
from sidrec.decoding.eligibility import Eligibility
from sidrec.decoding.trie import SidTrie

SPARE = 16  # leaves beyond the last that is asked for: most often those that are equal to it are among them


@torch.inference_mode()
def leaf_search(
    log_probs: Tensor,
    trie: SidTrie,
    beams: int,
    eligible: Eligibility | None = None,
    generators: list[torch.Generator] | None = None,
) -> Beams:
    """The min(beams, eligible items) best items of every request, exactly. log_probs: float32 [B, N], log π by leaf; it is written to.

    generators: one per request, on the CPU; then items are drawn by Gumbel top-k (arXiv 1903.06059) from φ, π over the eligible items.
    Raises InputError when scores are not numbers.
    """
    refuse_nan(log_probs)
    scores = log_probs if eligible is None else eligible.close(log_probs)
    reachable = (scores > -torch.inf).sum(1)
    if generators is None:
        leaves, best = exact_top(scores, beams)
        return Beams(items_at(trie, leaves, best), best, reachable)
    log_draws = scores.log_softmax(1).masked_fill(scores == -torch.inf, -torch.inf)
    noise = torch.stack([torch.empty(trie.n_items).exponential_(generator=generator) for generator in generators])
    leaves, keys = exact_top(log_draws - noise.clamp_(min=1e-30).log_().to(scores.device), beams + 1)
    drawn = leaves[:, :beams]
    best = scores.gather(1, drawn).masked_fill(keys[:, :beams] == -torch.inf, -torch.inf)
    draws = draws_of(log_draws.gather(1, drawn), keys, beams)
    return Beams(items_at(trie, drawn, best), best, reachable, draws)


def items_at(trie: SidTrie, leaves: Tensor, scores: Tensor) -> Tensor:
    """int64, of the shape of `leaves`: their items, -1 where the score is -inf."""
    return trie.item_of_leaf[leaves].masked_fill(scores == -torch.inf, -1)


def exact_top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best leaves of each request, int64 [B, k'], and their scores; of equal ones the lower leaf first. scores: [B, N]."""
    k = min(k, scores.shape[1])
    several = min(k + SPARE, scores.shape[1])
    values, leaves = scores.topk(several, dim=1)
    best = leaves.gather(1, best_first(values, leaves, k))
    cut = (values[:, -1] == values[:, k - 1]) | values[:, -1].isnan()  # leaves equal to the last one may lie outside
    if several < scores.shape[1] and bool(cut.any()):
        every = torch.arange(scores.shape[1], device=scores.device).expand(int(cut.sum()), -1)
        best[cut] = best_first(scores[cut], every, k)
    return best, scores.gather(1, best)

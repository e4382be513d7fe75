"""Constrained search for exactly L codes: one prefill per request, then at most L - 1 steps in which a request's beams are query
positions of one sequence (`SharedPrefix`). Only the current level's rows of the head are computed, and a beam whose remaining codes
are forced is not run again.

Deterministic: the `beams` items of largest π that beam search finds. Stochastic: Gumbel top-k (arXiv 1903.06059), `beams` distinct
items drawn from π without replacement, with what importance weights need.

An RQ-Transformer's codes all come from one state, so nothing is run again (`depth_search`); a stochastic search scores every item.

Why min(beams, eligible items) items come back, always. Call a node live when an eligible item is below it.
  1. Every node that the search keeps is live, so it has a live child.
  2. Where all live nodes of a level are kept, all live nodes of the next one are candidates.
  3. Where only `beams` of them are kept, each brings a live child, so at least `beams` are candidates.
  4. So min(beams, live nodes) are kept at every level; the last level's live nodes are the eligible items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sidrec.decoding.beams import Beams, best_first, draws_of, refuse_nan
from sidrec.decoding.depth_search import depth_search
from sidrec.decoding.eligibility import Eligibility
from sidrec.decoding.leaf_search import leaf_search
from sidrec.decoding.normaliser import Normaliser
from sidrec.decoding.policy import SidVocabulary, code_log_probs
from sidrec.decoding.rq_transformer.model import rq_transformer_of
from sidrec.decoding.shared_prefix import SharedPrefix
from sidrec.decoding.trie import SidTrie


@dataclass(frozen=True)
class _Frontier:
    """The beams of every request after some codes, best first; all [B, W] but the last.

    node: in the trie. log_prob: of the codes so far, -inf where there is no beam. key, log_draw: the Gumbel key and log φ when
    stochastic (else log_prob). token: of the last code. rank: its number among the beams, by which noise is drawn (0 is best).
    ancestors: bool [B, W, appended], where the beam's earlier tokens stand among the appended positions.
    """

    node: Tensor
    log_prob: Tensor
    key: Tensor
    log_draw: Tensor
    token: Tensor
    rank: Tensor
    ancestors: Tensor

    @classmethod
    def root(cls, n_requests: int, key: Tensor) -> _Frontier:
        zero = torch.zeros(n_requests, 1, device=key.device)
        no_ancestors = torch.zeros(n_requests, 1, 0, dtype=torch.bool, device=key.device)
        return cls(zero.long(), zero, key, zero, zero.long(), zero.long(), no_ancestors)

    def take(self, order: Tensor) -> _Frontier:
        """The beams at `order`, int64 [B, W']."""
        return _Frontier(
            node=self.node.gather(1, order),
            log_prob=self.log_prob.gather(1, order),
            key=self.key.gather(1, order),
            log_draw=self.log_draw.gather(1, order),
            token=self.token.gather(1, order),
            rank=self.rank.gather(1, order),
            ancestors=_rows(self.ancestors, order),
        )


@torch.inference_mode()
def beam_search(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    vocabulary: SidVocabulary,
    trie: SidTrie,
    beams: int,
    eligible: Eligibility | Tensor | None = None,
    generators: list[torch.Generator] | None = None,
    normaliser: Normaliser = "children",
    static_shapes: bool | None = None,
) -> Beams:
    """Search the next item of every request. All tensors, the model and the trie are on one device.

    input_ids, attention_mask: int64 [B, T], left-padded. eligible: what each request may be given (or bool [B, n_slots] by item
    index, for small catalogues); None: every item. generators: one per request, on the CPU; they make the search stochastic, each
    request with its own randomness. normaliser: what scores are normalised over; a stochastic search draws by the children's softmax
    whatever it is. static_shapes: run every beam at every level, so that what the model is given has shapes that follow from the
    prompts' shape, the beams and the trie alone, as a compiled model or a CUDA graph wants it; None: everywhere but on the CPU,
    where beams that have only forced codes left are not run.
    Returns min(beams, eligible items) distinct eligible items a request; `log_probs` are log π over the whole catalogue: what is
    not eligible is passed over, not renormalised away. Of equal scores the lower leaf (the SID first in order) comes first.
    Raises InputError when the model's scores are not numbers.
    """
    assert beams > 0, f"{beams} beams"
    if isinstance(eligible, Tensor):
        eligible = Eligibility.of_mask(trie, eligible)
    assert eligible is None or eligible.trie is trie, "eligibility by another trie"
    if (scorer := rq_transformer_of(model)) is not None:
        states, table = scorer.last_states(input_ids, attention_mask), scorer.table(trie)
        if generators is None:
            return depth_search(scorer.depth, states, table, beams, eligible)
        return leaf_search(scorer.depth.leaf_log_probs(states, table), trie, beams, eligible, generators)
    prefix = SharedPrefix(model, input_ids, attention_mask)
    n_requests, device = len(input_ids), input_ids.device
    is_static = device.type != "cpu" if static_shapes is None else static_shapes
    search = _Search(
        prefix, vocabulary, trie, beams + (generators is not None), eligible, generators, normaliser, is_static
    )
    frontier = _Frontier.root(n_requests, search.noise(1, 1, n_requests)[..., 0].to(device))
    for level in range(trie.n_levels):
        if level == 0:
            hidden = prefix.hidden
        else:
            frontier, hidden = search.decode_one_token(frontier, level)
        frontier = search.expand(frontier, hidden, level)

    refuse_nan(frontier.log_prob)
    items = trie.item_of_leaf[frontier.node].masked_fill(frontier.log_prob == -torch.inf, -1)
    reachable = torch.full((n_requests,), trie.n_items, device=device) if eligible is None else eligible.n_eligible
    if generators is None:
        return Beams(items, frontier.log_prob, reachable)
    draws = draws_of(frontier.log_draw[:, :beams], frontier.key, beams)
    return Beams(items[:, :beams], frontier.log_prob[:, :beams], reachable, draws)


@dataclass(frozen=True)
class _Search:
    """What stays the same from level to level of one search."""

    prefix: SharedPrefix
    vocabulary: SidVocabulary
    trie: SidTrie
    beams: int
    eligible: Eligibility | None
    generators: list[torch.Generator] | None
    normaliser: Normaliser
    is_static: bool

    def decode_one_token(self, frontier: _Frontier, level: int) -> tuple[_Frontier, Tensor]:
        """Run the model on the beams' last tokens. Returns the frontier, the beams that were run first, and their states [B, n, H].

        A beam with a single item below has only forced codes left, of probability 1: it need not be run.
        """
        n_run = frontier.node.shape[1]
        if self.normaliser == "children" and self.trie.n_nodes[level] == self.trie.n_items:
            n_run = 0
        elif self.normaliser == "children" and not self.is_static:
            leaves = self.trie.first_leaf[level]
            is_open = (leaves[frontier.node + 1] - leaves[frontier.node] > 1) & (frontier.log_prob != -torch.inf)
            n_run = int(is_open.sum(1).max())
            if n_run < frontier.node.shape[1]:
                frontier = frontier.take(torch.argsort(~is_open, dim=1, stable=True))
        if n_run == 0:
            return frontier, self.prefix.hidden[:, :0]
        n_requests, width = frontier.node.shape
        itself = torch.eye(width, n_run, dtype=torch.bool, device=frontier.node.device).expand(n_requests, -1, -1)
        ancestors = torch.cat([frontier.ancestors, itself], dim=2)
        hidden = self.prefix.extend(frontier.token[:, :n_run], ancestors[:, :n_run], depth=level)
        return replace(frontier, ancestors=ancestors), hidden

    def expand(self, frontier: _Frontier, hidden: Tensor, level: int) -> _Frontier:
        """Give every beam its children and keep the best of each request. hidden: [B, n, H], states of the first n beams."""
        trie, (n_requests, width) = self.trie, frontier.node.shape
        n_run, n_children = hidden.shape[1], trie.widest(level)

        # 1. the children of every beam: [B, W, M], M the most that a node of the level has
        below = trie.padded_children(level, frontier.node.flatten())
        child, codes, exists = (values.view(n_requests, width, n_children) for values in below)

        # 2. log π of each child's code; a beam that was not run has only forced codes left, of probability 1
        step = torch.zeros(child.shape, device=child.device).masked_fill_(~exists, -torch.inf)
        if n_run:
            step[:, :n_run] = code_log_probs(
                hidden.reshape(n_requests * n_run, 1, -1),
                self.prefix.head,
                self.vocabulary,
                level,
                codes[:, :n_run].reshape(-1, n_children),
                exists[:, :n_run].reshape(-1, n_children),
                self.normaliser,
            ).view(n_requests, n_run, n_children)

        # 3. a code without an eligible item below it is closed
        if self.eligible is not None:
            step = step.masked_fill(~self.eligible.open_children(level, frontier.node, child), -torch.inf)

        # 4. what the children are ordered by: log π of all codes so far, or Gumbel keys of log φ below the parent's key
        log_probs = frontier.log_prob[..., None] + step
        log_draws = keys = log_probs
        if self.generators is not None:
            log_draws = frontier.log_draw[..., None] + step.log_softmax(2).masked_fill(step == -torch.inf, -torch.inf)
            noise = _rows(self.noise(width, n_children, n_requests).to(child.device), frontier.rank)
            keys = _conditioned_keys(frontier.key, log_draws + noise)

        # 5. the best children of each request become its beams
        n_best = min(self.beams, width * n_children, trie.n_nodes[level + 1])
        best = best_first(keys.flatten(1), child.flatten(1), n_best)
        return _Frontier(
            node=child.flatten(1).gather(1, best),
            log_prob=log_probs.flatten(1).gather(1, best),
            key=keys.flatten(1).gather(1, best),
            log_draw=log_draws.flatten(1).gather(1, best),
            rank=torch.arange(n_best, device=child.device).expand(n_requests, -1),
            token=codes.flatten(1).gather(1, best) + self.vocabulary.first_tokens[level],
            ancestors=_rows(frontier.ancestors, best // n_children),
        )

    def noise(self, width: int, n_children: int, n_requests: int) -> Tensor:
        """float32 [B, width, n_children] of Gumbel noise, each request's from its own generator; zeros when deterministic."""
        if self.generators is None:
            return torch.zeros(n_requests, width, n_children)
        draws = [torch.empty(width, n_children).exponential_(generator=generator) for generator in self.generators]
        return -torch.stack(draws).clamp_(min=1e-30).log()


def _rows(values: Tensor, order: Tensor) -> Tensor:
    """[B, W', M]: the rows of `values` [B, W, M] at `order`, int64 [B, W']."""
    return values.gather(1, order[..., None].expand(-1, -1, values.shape[2]))


def _conditioned_keys(parent_keys: Tensor, perturbed: Tensor) -> Tensor:
    """The children's Gumbel keys, conditioned on their maximum being the parent's key (arXiv 1903.06059, appendix B.3).

    parent_keys: [B, W]. perturbed: [B, W, M], log φ plus Gumbel noise, -inf for what may not be drawn.
    """
    largest = perturbed.amax(dim=2, keepdim=True)
    parent = parent_keys[..., None]
    # the largest child takes the parent's key exactly; log1p(-exp(0)) is -inf there, which the formula handles
    v = parent - perturbed + torch.log1p(-torch.exp(perturbed - largest))
    keys = parent - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    return keys.masked_fill((perturbed == -torch.inf) | (largest == -torch.inf), -torch.inf)

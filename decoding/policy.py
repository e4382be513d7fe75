"""The one policy: π(item | history) = Π over levels of softmax over the codes that exist under the prefix so far.

SFT maximises it, RL improves it, beam search ranks by it, evaluation scores it; all of them call the functions below. A prefix with
a single child has probability 1 there: no loss and no gradient. For models trained on another softmax, search and scoring can also
normalise over a level's codes, or over the whole vocabulary as `generate()` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sidrec.decoding.normaliser import Normaliser
from sidrec.decoding.output_head import OutputHead
from sidrec.decoding.trie import SidTrie

SPARSE_LEVEL = 8  # a level with more codes than this many times a node's most children is worked on child by child


def is_sparse(level_size: int, most_children: int) -> bool:
    """Whether a level of so many codes, of which a prefix has `most_children` at most, is worked on child by child."""
    return level_size > SPARSE_LEVEL * most_children


@dataclass(frozen=True)
class SidVocabulary:
    """Where the SID tokens lie in a language model's vocabulary.

    start_token: the token before a history's first item. first_tokens: the token id of code 0 of each level; a level's tokens are
    consecutive, so its rows of the output head are a view.
    """

    start_token: int
    first_tokens: tuple[int, ...]
    level_sizes: tuple[int, ...]

    def level_logits(self, hidden: Tensor, head: OutputHead, level: int) -> Tensor:
        """float32 [..., K_level]: logits of the level's codes only. hidden: [..., H]."""
        first = self.first_tokens[level]
        return head.logits(hidden, first, first + self.level_sizes[level])

    def code_logits(self, hidden: Tensor, head: OutputHead, level: int, codes: Tensor) -> Tensor:
        """float32 [R, B, M]: logits of the level's `codes`, int64 [R, M]. hidden: [R, B, H].

        In a level with many more codes than those, as where every item has a last code of its own, the others are not computed.
        """
        if head.weight is not None and is_sparse(self.level_sizes[level], codes.shape[1]):
            return head.logits_at(hidden, codes + self.first_tokens[level])
        return _logits_of(self.level_logits(hidden, head, level), codes)


def _logits_of(logits: Tensor, codes: Tensor) -> Tensor:
    """[R, B, M]: of logits [R, B, K], those of each row's codes, int64 [R, M]."""
    return logits.gather(2, codes[:, None].expand(-1, logits.shape[1], -1))


def child_log_probs(logits: Tensor, mask: Tensor) -> Tensor:
    """float32 [..., K]: log-softmax over the codes allowed by `mask` (bool [..., K], at least one per row); -inf elsewhere."""
    assert logits.shape == mask.shape, f"logits {tuple(logits.shape)}, mask {tuple(mask.shape)}"
    return logits.float().masked_fill(~mask, -torch.inf).log_softmax(-1)


def code_log_probs(
    hidden: Tensor,
    head: OutputHead,
    vocabulary: SidVocabulary,
    level: int,
    codes: Tensor,
    exists: Tensor,
    normaliser: Normaliser,
) -> Tensor:
    """float32 [R, B, M]: log-probabilities of the codes that may come next, -inf where `exists` is False.

    hidden: [R, B, H], the states of B requests at each of R prefixes. codes: int64 [R, M], all the children of each prefix; exists: bool
    [R, M], False for the filling of rows with fewer children.
    """
    assert hidden.ndim == 3
    assert codes.shape == exists.shape == (len(hidden), codes.shape[1]), f"{tuple(codes.shape)}, {tuple(exists.shape)}"
    where = exists[:, None].expand(-1, hidden.shape[1], -1)
    if normaliser == "children":
        return child_log_probs(vocabulary.code_logits(hidden, head, level, codes), where)
    level_logits = vocabulary.level_logits(hidden, head, level)
    total = (
        level_logits.logsumexp(-1)
        if normaliser == "level"
        else head.log_sum(hidden.flatten(0, 1)).view(where.shape[:2])
    )
    return (_logits_of(level_logits, codes) - total[..., None]).masked_fill(~where, -torch.inf)


def next_code_log_probs(
    hidden: Tensor,
    items: Tensor,
    head: OutputHead,
    vocabulary: SidVocabulary,
    trie: SidTrie,
    level: int,
    normaliser: Normaliser = "children",
) -> tuple[Tensor, Tensor]:
    """The distribution at one level under each item's own prefix.

    hidden: [R, H], the states that predict the level's code. items: int64 [R].
    Returns float32 [R, K_level] of log-probabilities, -inf for codes that do not exist, and int64 [R], the items' codes.
    """
    logits = vocabulary.level_logits(hidden, head, level)
    mask = trie.children_mask(level, trie.node_of_item[level][items])
    if normaliser == "children":
        log_probs = child_log_probs(logits, mask)
    else:
        total = logits.logsumexp(-1) if normaliser == "level" else head.log_sum(hidden)
        log_probs = (logits - total[:, None]).masked_fill(~mask, -torch.inf)
    return log_probs, trie.code[level][trie.node_of_item[level + 1][items]].long()


def leaked_mass(logits: Tensor, exists: Tensor, log_total: Tensor) -> Tensor:
    """float32 [R]: the share of a softmax that falls on codes which do not exist.

    logits: float32 [R, K], of a level's codes. exists: bool [R, K]. log_total: float32 [R] (or [n, R], for n softmaxes at once),
    logsumexp of all logits that the softmax is over: those of the level, or of the whole vocabulary.
    """
    existing = logits.masked_fill(~exists, -torch.inf).logsumexp(1)
    return -torch.expm1(existing - log_total)


def item_log_probs(
    hidden: Tensor,
    items: Tensor,
    head: OutputHead,
    vocabulary: SidVocabulary,
    trie: SidTrie,
    normaliser: Normaliser = "children",
) -> Tensor:
    """float32 [R, L]: log-probability of each code of `items`, given the codes before it; by default log π.

    hidden: [R, L, H], the last hidden states from which the L codes are predicted. items: int64 [R]. The sum over levels is the
    item's log-probability.
    """
    assert hidden.ndim == 3
    assert hidden.shape[:2] == (len(items), trie.n_levels), f"hidden {tuple(hidden.shape)} for {len(items)} items"
    columns = []
    for level in range(trie.n_levels):
        node, child = (trie.node_of_item[depth][items] for depth in (level, level + 1))
        children, codes, exists = trie.padded_children(level, node)
        log_probs = code_log_probs(hidden[:, level, None], head, vocabulary, level, codes, exists, normaliser)[:, 0]
        columns.append(log_probs.gather(1, (child - children[:, 0])[:, None])[:, 0])
    return torch.stack(columns, dim=1)

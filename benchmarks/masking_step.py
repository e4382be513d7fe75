"""One masking step: from the rows' prefixes and scores to the scores of what may come next; and tries of ten million items."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import cpu_seconds
from benchmarks.random_catalogues import skewed_codes, uniform_codes
from sidrec.decoding.trie import SidTrie
from sidrec.decoding.trie_file import open_trie, save_trie

VOCABULARY = 151_936  # tokens of Qwen3 before those of the SIDs
N_ROWS = 640  # 8 requests of 80 beams, or 32 of 20
DICT_REPEATS = 3  # a step of the dictionary takes seconds


class DictProcessor:
    """The usual logits processor: a dictionary from a prefix's tokens to the tokens after it, a mask of the whole vocabulary, row by
    row; and, as it does not know whether it is given logits, a log-softmax before."""

    def __init__(self, codes: Tensor, first_tokens: list[int], depth: int) -> None:
        self.following: dict[tuple[int, ...], list[int]] = {}
        for row in (codes[:, : depth + 1].long() + torch.tensor(first_tokens[: depth + 1])).unique(dim=0).tolist():
            self.following.setdefault(tuple(row[:-1]), []).append(row[-1])

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """float32 [R, V]. tokens: int64 [R, depth]; scores: float32 [R, V]."""
        return self.mask(tokens, scores.log_softmax(-1))

    def mask(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """The same without the log-softmax."""
        mask = torch.full_like(scores, -torch.inf)
        for row, prefix in enumerate(tokens):
            mask[row, self.following[tuple(prefix.tolist())]] = 0
        return scores + mask


class PaddedCsr:
    """Children in compressed rows of (code, next state), int32, every row of a step padded to the level's most children."""

    def __init__(self, trie: SidTrie, depth: int) -> None:
        self.start = trie.first_child[depth].values().to(torch.int32)
        next_state = torch.arange(trie.n_nodes[depth + 1], dtype=torch.int32)
        self.children = torch.stack([trie.code[depth][:].to(torch.int32), next_state], dim=1)
        self.width = trie.widest(depth)

    def __call__(self, states: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Masked scores float32 [R, width] and next states. states: int64 [R]; scores: float32 [R, K]."""
        start, end = self.start[states], self.start[states + 1]
        index = start[:, None] + torch.arange(self.width)
        exists = index < end[:, None]
        children = self.children[index.clamp(max=len(self.children) - 1)]
        return scores.gather(1, children[..., 0].long()).masked_fill(~exists, -torch.inf), children[..., 1]


def children_scores(trie: SidTrie, depth: int, nodes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ours: of every child, one row's after another's, the row, the node and the score, each [total]. scores: float32 [R, K]."""
    rows, children = trie.children(depth, nodes)
    place = (rows * trie.level_sizes[depth]).add_(trie.code[depth].stored.index_select(0, children))
    return rows, children, scores.view(-1).index_select(0, place)


def compare_masking(n_items: int, repeats: int, seed: int) -> dict[str, float]:
    """The last step of three codes of 1,024: how many times longer the dictionary and the padded rows take.

    The rows stand at the prefixes of random items. Also the time of the mask, bool [R, K], that training and `generate()` use.
    """
    sizes = [1024] * 3
    first_tokens = [VOCABULARY + 1024 * level for level in range(3)]
    codes = skewed_codes(n_items, sizes, seed)
    trie = SidTrie(codes, sizes)
    depth, generator = 2, torch.Generator().manual_seed(seed)
    prefixes = codes[torch.randint(n_items, (N_ROWS,), generator=generator), :depth].long()
    nodes, tokens = trie.descend(prefixes), prefixes + torch.tensor(first_tokens[:depth])
    scores = torch.randn(N_ROWS, VOCABULARY + sum(sizes), generator=generator)
    level_scores = scores[:, first_tokens[depth] :].contiguous()
    by_dict, csr = DictProcessor(codes, first_tokens, depth), PaddedCsr(trie, depth)

    rows, _, ours = children_scores(trie, depth, nodes, level_scores)
    by_row = torch.where(trie.children_mask(depth, nodes), level_scores, -torch.inf)
    assert torch.equal(ours, by_row[by_row > -torch.inf]), "the mask allows other codes"
    assert torch.equal(by_dict.mask(tokens, scores)[:, first_tokens[depth] :], by_row), (
        "the dictionary allows other codes"
    )
    padded = csr(nodes, level_scores)[0]
    assert torch.equal(ours, padded[padded > -torch.inf]), "the padded rows allow other codes"
    step = cpu_seconds(lambda: children_scores(trie, depth, nodes, level_scores), 5 * repeats)
    mask_step = cpu_seconds(lambda: trie.children_mask(depth, nodes), 5 * repeats)
    dict_step = cpu_seconds(lambda: by_dict(tokens, scores), min(repeats, DICT_REPEATS))
    dict_mask = cpu_seconds(lambda: by_dict.mask(tokens, scores), min(repeats, DICT_REPEATS))
    csr_step = cpu_seconds(lambda: csr(nodes, level_scores), 5 * repeats)
    return {
        "mean_children": round(len(rows) / N_ROWS, 1),
        "most_children": csr.width,
        "step_ms": round(step * 1e3, 3),
        "mask_ms": round(mask_step * 1e3, 3),
        "dict_step_ms": round(dict_step * 1e3, 1),
        "dict_mask_ms": round(dict_mask * 1e3, 1),
        "csr_step_ms": round(csr_step * 1e3, 2),
        "dict_ratio": round(dict_step / step),
        "csr_ratio": round(csr_step / step, 1),
    }


def measure_large_trie(n_items: int, repeats: int, seed: int) -> dict[str, float]:
    """Four codes of 2,048, uniform: time to build, bytes, time to open, and a step's time over that with 4,000 items."""
    sizes = [2048] * 4
    codes = uniform_codes(n_items, sizes, seed)
    start = time.process_time()
    trie = SidTrie(codes, sizes)
    build = time.process_time() - start
    small = SidTrie(uniform_codes(4000, sizes, seed), sizes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trie.safetensors"
        save_trie(trie, path)
        opening = []
        for _ in range(repeats):
            start = time.perf_counter()
            opened = open_trie(path)
            opening.append(time.perf_counter() - start)
        file_bytes = path.stat().st_size
        longer = [
            _step(opened, depth, repeats, seed) - _step(small, depth, repeats, seed) for depth in range(len(sizes))
        ]
    return {
        "build10m_seconds": round(build, 2),
        "bytes_per_item": round(trie.index_bytes / n_items, 2),
        "file_bytes_per_item": round(file_bytes / n_items, 2),
        "open_ms": round(sorted(opening)[len(opening) // 2] * 1e3, 2),
        "step10m_ms": round(max(longer) * 1e3, 3),
    }


def _step(trie: SidTrie, depth: int, repeats: int, seed: int) -> float:
    """CPU seconds of the mask of N_ROWS random nodes."""
    nodes = torch.randint(trie.n_nodes[depth], (N_ROWS,), generator=torch.Generator().manual_seed(seed))
    return cpu_seconds(lambda: trie.children_mask(depth, nodes), 10 * repeats)

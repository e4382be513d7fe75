"""What codes alone say of a set of semantic IDs: use, collisions, entropy, prefix tree, agreement with categories.

Logarithms are natural (nats). Figures are rounded to 6 decimals, so that they read well and compare exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

DIGITS = 6
PERMUTATIONS = 10


def prefix_ids(codes: np.ndarray) -> np.ndarray:
    """Which items share their first d codes: int64 [N, L], column d-1 holds the rank of an item's d-code prefix among all of them.

    codes: int [N, L]. Ranks are lexicographic, so that items in the order of the last column are in the order of their codes.
    """
    ids = np.empty(codes.shape, dtype=np.int64)
    prefix = np.zeros(len(codes), dtype=np.int64)
    for level in range(codes.shape[1]):  # ranks instead of mixed-radix numbers: those overflow at 8 levels of 256
        column = codes[:, level].astype(np.int64)
        prefix = np.unique(prefix * (int(column.max()) + 1) + column, return_inverse=True)[1].ravel()
        ids[:, level] = prefix
    return ids


def entropy(counts: np.ndarray) -> float:
    """H = -sum p ln p of counts of any shape, in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0  # + 0.0: never -0.0


def gini(counts: np.ndarray) -> float:
    """0 when all counts are equal, near 1 when one holds everything: sum_k (2k - K - 1) n_(k) / (K sum n), n ascending. counts: [K]."""
    K = len(counts)
    ranks = np.arange(1, K + 1)
    return float(((2 * ranks - K - 1) * np.sort(counts)).sum() / (K * counts.sum()))


def usage(codes: np.ndarray, size: int) -> dict[str, Any]:
    """How evenly one level's codes are used; perplexity is e^entropy, the number of codes "in effect". codes: int [N]."""
    counts = np.bincount(codes, minlength=size)
    assert len(counts) == size, f"a code is beyond the {size} of its level"
    used, largest = int((counts > 0).sum()), int(counts.max())
    top = math.ceil(size / 100)
    figures = {
        "usage": used / size,
        "entropy": entropy(counts),
        "perplexity": math.exp(entropy(counts)),
        "gini": gini(counts),
        "mean_cluster": len(codes) / size,
        "largest_over_mean": largest * size / len(codes),
        "top_1_percent_share": float(np.sort(counts)[-top:].sum()) / len(codes),
    }
    exact = {"codes": size, "codes_used": used, "dead_codes": size - used, "largest_cluster": largest}
    return exact | {name: round(value, DIGITS) for name, value in figures.items()}


def collisions(codes: np.ndarray) -> dict[str, Any]:
    """How many items share all their codes with another, by three definitions. codes: int [N, L].

    rate: 1 - distinct rows / N (what MiniOneRec prints); share_of_items: items in a group of two or more; largest_group: items in the
    largest one. group_sizes: [[items, how many groups of so many], …].
    """
    counts = np.bincount(prefix_ids(codes)[:, -1])
    sizes, how_many = np.unique(counts, return_counts=True)
    return {
        "rate": round(1 - len(counts) / len(codes), DIGITS),
        "share_of_items": round(float(counts[counts > 1].sum()) / len(codes), DIGITS),
        "largest_group": int(counts.max()),
        "group_sizes": [[int(size), int(many)] for size, many in zip(sizes, how_many, strict=True)],
    }


def entropies(codes: np.ndarray) -> dict[str, Any]:
    """How much each further code tells: H(c_l | c_1 … c_{l-1}) for every level, and their sum H(c_1 … c_L). codes: int [N, L].

    The total equals ln N exactly when no two items share all codes.
    """
    ids = prefix_ids(codes)
    joint = [entropy(np.bincount(ids[:, level])) for level in range(codes.shape[1])]
    return {
        "conditional": [round(max(value, 0.0), DIGITS) for value in np.diff([0.0, *joint]).tolist()],
        "total": round(joint[-1], DIGITS),
        "ln_items": round(math.log(len(codes)), DIGITS),
    }


def prefix_tree(codes: np.ndarray, level_sizes: list[int]) -> list[dict[str, Any]]:
    """The tree that the codes span, one entry a depth d = 1 … L. codes: int [N, L].

    prefixes: distinct first d codes, and share_of_paths: of prod K_1 … K_d that there could be; fan_out: children of the prefixes one
    depth above; single_items: share of the prefixes with one item below them; largest_group: items below the fullest one.
    """
    ids = prefix_ids(codes)
    depths, paths = [], 1
    parents = np.zeros(len(codes), dtype=np.int64)
    for level, size in enumerate(level_sizes):
        prefixes = ids[:, level]
        counts = np.bincount(prefixes)
        paths *= size
        first_item = np.unique(prefixes, return_index=True)[1]
        children = np.bincount(parents[first_item])
        depths.append(
            {
                "prefixes": len(counts),
                "share_of_paths": len(counts) / paths,
                "fan_out_mean": round(float(children.mean()), DIGITS),
                "fan_out_p95": round(float(np.percentile(children, 95)), DIGITS),
                "fan_out_max": int(children.max()),
                "single_items": round(float((counts == 1).mean()), DIGITS),
                "largest_group": int(counts.max()),
            }
        )
        parents = prefixes
    return depths


def token_costs(codes: np.ndarray, level_sizes: list[int]) -> dict[str, Any]:
    """What the IDs cost a language model: tokens an item, tokens new to the vocabulary, and bits beside the log2 N that are needed."""
    return {
        "tokens_per_item": len(level_sizes),
        "new_tokens": sum(level_sizes),
        "bits_per_item": round(sum(math.log2(size) for size in level_sizes), DIGITS),
        "bits_needed": round(math.log2(len(codes)), DIGITS),
    }


def category_agreement(first_codes: np.ndarray, categories: list[str], seed: int) -> dict[str, Any] | None:
    """Whether items with one first code are of one category, beside what chance gives: the mean over 10 random orders of the categories.

    purity: share of items whose category is the most frequent one of their code. nmi: mutual information / mean of both entropies,
    which is the V-measure, the harmonic mean of homogeneity (a code has one category) and completeness (a category has one code).
    Items without a category ("") are left out; None when fewer than two categories are left. first_codes: int [N].
    """
    assert len(categories) == len(first_codes)
    names, kinds = np.unique(np.array(categories, dtype=object).astype(str), return_inverse=True)
    known = names[kinds.ravel()] != ""
    codes, kinds = first_codes[known].astype(np.int64), np.unique(kinds.ravel()[known], return_inverse=True)[1].ravel()
    if len(kinds) == 0 or kinds.max() < 1:
        return None
    rng = np.random.default_rng(seed)
    shuffled = [_agreement(codes, rng.permutation(kinds)) for _ in range(PERMUTATIONS)]
    chance = {name: float(np.mean([one[name] for one in shuffled])) for name in shuffled[0]}
    return {
        "items": len(kinds),
        "categories": int(kinds.max()) + 1,
        **{name: round(value, DIGITS) for name, value in _agreement(codes, kinds).items()},
        "by_chance": {name: round(value, DIGITS) for name, value in chance.items()},
    }


def _agreement(codes: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    n_kinds = int(kinds.max()) + 1
    pairs, counts = np.unique(codes * n_kinds + kinds, return_counts=True)
    most = np.zeros(int(codes.max()) + 1, dtype=np.int64)
    np.maximum.at(most, pairs // n_kinds, counts)
    of_codes, of_kinds, joint = entropy(np.bincount(codes)), entropy(np.bincount(kinds)), entropy(counts)
    shared = max(of_codes + of_kinds - joint, 0.0)
    return {
        "purity": float(most.sum()) / len(codes),
        "nmi": 2 * shared / (of_codes + of_kinds),
        "homogeneity": shared / of_kinds,
        "completeness": shared / of_codes if of_codes > 0 else 1.0,
    }

"""Random sets of semantic IDs of every shape: one item, one long chain, all under one prefix, full, sparse."""

from __future__ import annotations

import numpy as np
from conftest import make_sids
from hypothesis import strategies as st

from sidrec.tokenizer.semantic_ids import SemanticIds


@st.composite
def sid_sets(draw: st.DrawFn) -> SemanticIds:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    shape = draw(st.sampled_from(["any", "one item", "one prefix", "chain"]))
    seed = draw(st.integers(0, 1000))
    if shape == "chain":
        return make_sids(1, [1] * 6, seed)
    if shape == "one prefix":  # the items differ in their last code only
        chosen = np.random.default_rng(seed).permutation(9)[: draw(st.integers(1, 9))]
        full = make_sids(1, [*sizes, 1], seed)
        codes = np.repeat(full.codes, len(chosen), axis=0)
        codes[:, -1] = chosen
        return SemanticIds(codes, codes, [*full.codebooks[:-1], np.zeros((9, 6), np.float32)])
    total = int(np.prod(sizes))
    return make_sids(1 if shape == "one item" else draw(st.integers(1, total)), sizes, seed)

"""Vectors that say the same of every item, or of most: nothing can be told apart by them."""

from __future__ import annotations

import numpy as np

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.config import COMPUTED_SOURCES
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors, Rows

MOST_LOOKED_AT = 20_000  # items, evenly spaced
SAME = 1e-4  # vectors this near, as a share of the longest one's length, are one
MOST = 0.5  # of the items


def check_spread(vectors: ItemVectors, sources: list[str]) -> None:
    """Raise InputError when a source has one vector for all items, or the sources side by side have one for more than half of them.

    vectors: [N, D]. sources: their names, for the sentence.
    """
    if len(vectors) < 2:
        return
    borders = np.cumsum([0, *vectors.blocks])
    rows = vectors[evenly_spaced(len(vectors))]
    for source, start, end in zip(sources, borders, borders[1:], strict=False):
        if share_of_one(rows[:, start:end]) == 1.0:
            raise InputError(f"the source {source} has the same vector for every item; {_cure(source, sources)}.")
    share = share_of_one(rows)
    if share > MOST:
        raise InputError(
            f"{share:.1%} of the {len(vectors):,} items have the same vector, so no quantizer can tell them apart; "
            f"{_cure(sources[0], sources)}."
        )


def sameness_note(source: str, vectors: np.ndarray) -> list[str]:
    """A warning when more than half of a source's vectors, [N, D], are one: other sources may still tell the items apart."""
    share = share_of_one(vectors[evenly_spaced(len(vectors))])
    if len(vectors) < 2 or share <= MOST:
        return []
    return [f"Warning: {share:.1%} of the items have the same {source} vector; see what their text is made of."]


def share_of_one(rows: Rows) -> float:
    """The share of the rows [n, D] that have one vector in common, where it is more than half of them; else something below that.

    A vector that more than half of the rows share is their median in every column, whatever the others are.
    """
    block = np.asarray(rows[:], dtype=np.float64)
    assert block.ndim == 2, f"vectors must be [n, D], got {block.shape}"
    longest = float(np.linalg.norm(block, axis=1).max())
    distances = np.linalg.norm(block - np.median(block, axis=0), axis=1)
    return float((distances <= SAME * longest).mean())


def evenly_spaced(n_items: int) -> np.ndarray:
    """At most MOST_LOOKED_AT item indices, int64, evenly spaced."""
    return np.unique(np.linspace(0, n_items - 1, min(n_items, MOST_LOOKED_AT)).astype(np.int64))


def _cure(source: str, sources: list[str]) -> str:
    if source == COMPUTED_SOURCES[0]:
        cure = "give the items another column of text in the catalogue, try a --text_encoder"
    elif source == COMPUTED_SOURCES[1]:
        cure = "give longer histories (--k_user, --k_item of the data)"
    else:
        cure = "make the file again"
    others = [other for other in (*sources, *COMPUTED_SOURCES) if other != source]
    return f"{cure}, or take other sources, such as --sources {others[0]} --weights 1"

"""How good a set of semantic IDs is: the figures of report.json. They hold no clock time: one seed, the same bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from sidrec.tokenizer.codebooks import fitted_codebooks
from sidrec.tokenizer.embeddings.item_vectors import Rows
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.report.sid_metrics import (
    DIGITS,
    category_agreement,
    collisions,
    entropies,
    prefix_tree,
    token_costs,
    usage,
)
from sidrec.tokenizer.report.vector_metrics import (
    Reconstruction,
    exact_duplicates,
    margins,
    neighbourhoods,
    variance,
    within_prefixes,
)
from sidrec.tokenizer.semantic_ids import SemanticIds

MARGIN_EDGES = np.linspace(0, 1, 26)  # of the histogram; the last bin holds everything above


def measure(vectors: Rows, sids: SemanticIds, seed: int, categories: list[str] | None = None) -> dict[str, Any]:
    """Every figure of report.json. vectors: [N, D] rows, what the codes were made from; `seed` draws the samples.

    Figures of `levels` and those named "raw" are of the quantizer's own codes, before rows were made unique; all others of the codes as
    they are used. SIDs without a quantizer get vectors fitted to their codes (`reconstruction` says which). categories: N names, for the
    agreement with the first code. Memory: a few hundred MB beside `vectors`, which are read in pieces.
    """
    assert len(vectors) == sids.n_items
    quantizer = sids.quantizer or Quantizer(fitted_codebooks(vectors, sids.codes_raw, sids.level_sizes))
    coded = len(quantizer.codebooks.sizes)  # a level beyond only tells equal codes apart
    raw, codes = sids.codes_raw[:, :coded], sids.codes[:, :coded]
    errors_raw = quantizer.mean_squared_errors(vectors, raw)
    error = quantizer.mean_squared_errors(vectors, codes)[-1]
    between = within_prefixes(vectors, sids.codes)
    row_margins = margins(vectors, raw, quantizer, seed)
    reconstruction = Reconstruction(quantizer, codes, vectors.shape[1])
    return {
        "items": sids.n_items,
        "dimensions": int(vectors.shape[1]),
        "reconstruction": "quantizer" if sids.quantizer else "fitted to the codes",
        "levels": _levels(sids, variance(vectors), errors_raw, row_margins),
        "collisions_raw": collisions(raw),
        "collisions": collisions(sids.codes),
        "entropy_raw": entropies(raw),
        "entropy": entropies(sids.codes),
        "items_changed": int((raw != codes).any(axis=1).sum()),
        "mean_squared_error_raw": round(errors_raw[-1], DIGITS),
        "mean_squared_error_unique": round(error, DIGITS),
        "cost_of_uniqueness": round(error / errors_raw[-1] - 1 if errors_raw[-1] > 1e-12 else 0.0, DIGITS),
        "prefix_tree": prefix_tree(sids.codes, sids.level_sizes),
        "within_prefixes": between,
        "neighbours": neighbourhoods(vectors, reconstruction, sids.codes, seed),
        "categories": None if categories is None else category_agreement(raw[:, 0], categories, seed),
        "duplicate_vectors": exact_duplicates(vectors),
        "margins": _margin_histogram(row_margins),
        "tokens": token_costs(sids.codes, sids.level_sizes),
    }


def _levels(sids: SemanticIds, total: float, errors: list[float], row_margins: np.ndarray) -> list[dict[str, Any]]:
    """Per level: use of the codes and error after it; row_margins [n, L] of those of the quantizer. A dedup token: its use as used."""
    levels = []
    for level, size in enumerate(sids.level_sizes):
        figures = usage((sids.codes_raw if level < row_margins.shape[1] else sids.codes)[:, level], size)
        error = errors[min(level, len(errors) - 1)]
        figures |= {
            "variance_explained": round(1.0 - error / total if total > 1e-12 else 0.0, DIGITS),
            "mean_squared_error": round(error, DIGITS),
        }
        if level < row_margins.shape[1]:
            of_level = row_margins[:, level]
            p5, median = np.percentile(of_level, [5, 50])
            margin = {"mean": float(of_level.mean()), "median": float(median), "p5": float(p5)}
            figures["margin"] = {name: round(value, DIGITS) for name, value in margin.items()}
        levels.append(figures)
    return levels


def _margin_histogram(row_margins: np.ndarray) -> dict[str, Any]:
    shares = [
        np.histogram(np.minimum(level, MARGIN_EDGES[-1]), MARGIN_EDGES)[0] / len(level) for level in row_margins.T
    ]
    return {
        "sampled": len(row_margins),
        "edges": [round(edge, 4) for edge in MARGIN_EDGES.tolist()],
        "shares": [[round(share, DIGITS) for share in level.tolist()] for level in shares],
    }

"""Collaborative vectors of items that nobody has taken: what their texts let expect, by ridge regression on the items that were taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sidrec.tokenizer.embeddings.ridge import FEWEST_ROWS, Ridge
from sidrec.tokenizer.embeddings.text import TextModel, TfidfSvd
from sidrec.tokenizer.embeddings.unit_rows import EMPTY_NORM, unit_rows

LEAST_EXPLAINED = 0.01  # of the variance; less is what the best of several penalties explains of noise


@dataclass(frozen=True)
class FromText:
    """text vector → collaborative vector. weights: float64 [D, E]. intercept: float64 [E]. seed: see `unit_rows`. explained: the share of
    the collaborative vectors' variance that texts explain, of items left out of the fit. text: what encodes texts; `load_encoders` puts it
    back, so that its arrays are saved once."""

    weights: np.ndarray
    intercept: np.ndarray
    seed: int
    explained: float
    text: TfidfSvd | TextModel | None = None

    @classmethod
    def fit(
        cls, texts: np.ndarray, vectors: np.ndarray, seed: int, text: TfidfSvd | TextModel | None = None
    ) -> FromText | None:
        """Fitted to the items with evidence, in both; None where they are too few, or where texts say nothing of who takes an item.

        texts: float32 [N, D], as of `text`. vectors: float32 [N, E], rows of length 1, or of EMPTY_NORM where there is no evidence.
        """
        known = has_evidence(texts) & has_evidence(vectors)
        if known.sum() < FEWEST_ROWS:
            return None
        ridge = Ridge.fit(texts[known], vectors[known])
        if ridge.explained < LEAST_EXPLAINED:
            return None
        return cls(ridge.weights, ridge.intercept, seed, ridge.explained, text)

    def filled(self, texts: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """`vectors`, those without evidence predicted from `texts` (as of `fit`)."""
        missing = ~has_evidence(vectors)
        whole = vectors.copy()
        whole[missing] = self.of_vectors(texts[missing])
        return whole

    def of_vectors(self, texts: np.ndarray) -> np.ndarray:
        """float32 [n, E], of length 1; a text without any known word gets a vector near the origin. texts: float32 [n, D]."""
        ridge = Ridge(self.weights, self.intercept, 0.0, self.explained)
        rows = ridge.predict(texts) * has_evidence(texts)[:, None]
        return unit_rows(rows, self.seed, longest=1.0)

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 [n, E]."""
        assert self.text is not None, "the encoder of texts was not put back"
        return self.of_vectors(self.text.encode(texts))

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings and arrays, from which `restored` makes it again, but for the encoder of texts."""
        arrays = {"weights": self.weights, "intercept": self.intercept}
        return {"seed": self.seed, "explained": self.explained}, arrays

    @classmethod
    def restored(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> FromText:
        return cls(arrays["weights"], arrays["intercept"], settings["seed"], settings["explained"])

    def with_text(self, text: TfidfSvd | TextModel) -> FromText:
        return replace(self, text=text)


def has_evidence(vectors: np.ndarray) -> np.ndarray:
    """bool [N]: which rows of [N, D] say something (see `unit_rows`)."""
    evident: np.ndarray = np.linalg.norm(vectors, axis=1) > 2 * EMPTY_NORM
    return evident

"""What an item's text says of its embedding in an RQ-Transformer: cold items are scored by it, in place of rows that training pushed away.

The map is a ridge regression over the items that were taken in training, from the vector of an item's text to the sum of the rows on its
path. A bundle carries it, so that items that come later have embeddings, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from sidrec.decoding.recommender import Recommender
from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM, rq_transformer_of
from sidrec.pipeline.arrays import read_npy
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path
from sidrec.tokenizer.embeddings.ridge import FEWEST_ROWS, Ridge

FILE = "cold_rows.safetensors"
TEXT = "text"  # the source of items' vectors that is read


@dataclass(frozen=True)
class ColdRows:
    """weights: float32 [D, H] and intercept: float32 [H], from the vector of a text to the item's embedding. bias: of every cold item, the
    mean of the others', so that they differ by what their texts say."""

    weights: np.ndarray
    intercept: np.ndarray
    bias: float

    @classmethod
    def fit(cls, model: RqTransformerForCausalLM, texts: np.ndarray, counts: np.ndarray) -> ColdRows | None:
        """None where too few items were taken. texts: float [N, D], of the training catalogue. counts: int64 [N], how often each item was
        taken in training."""
        assert len(texts) == len(counts) == model.trie.n_items, f"{len(texts)} texts, {model.trie.n_items} items"
        is_warm = counts > 0
        if is_warm.sum() < FEWEST_ROWS:
            return None
        with torch.no_grad():
            table, leaves = (
                model.table(),
                model.trie.leaf_of_item(torch.from_numpy(is_warm.nonzero()[0]).to(model.device)),
            )
            rows, bias = table.item_rows[leaves].float().cpu().numpy(), float(table.item_bias[leaves].mean())
        ridge = Ridge.fit(texts[is_warm], rows)
        return cls(ridge.weights.astype(np.float32), ridge.intercept.astype(np.float32), bias)

    @classmethod
    def of_run(cls, run_dir: Path, recommender: Recommender, counts: np.ndarray) -> ColdRows | None:
        """Of a run's model; None where it is no RQ-Transformer of one softmax over items, or the run has no vectors of texts."""
        model, file = rq_transformer_of(recommender.model), run_dir / "embeddings" / f"{TEXT}.npy"
        if model is None or model.config.depth_head != "marginal" or not file.is_file():
            return None
        return cls.fit(model, read_npy(file), counts)

    def applied(self, recommender: Recommender, codes: np.ndarray, texts: np.ndarray) -> Recommender:
        """The recommender in which the items of SIDs `codes`, int [m, L], are scored by their texts' vectors, float [m, D]."""
        model = rq_transformer_of(recommender.model)
        assert model is recommender.model, "an RQ-Transformer, in no wrapper"
        rows = torch.from_numpy(texts.astype(np.float32) @ self.weights + self.intercept).to(model.device)
        given = torch.from_numpy(codes.astype(np.int64)).to(model.device), rows, rows.new_full((len(rows),), self.bias)
        return Recommender(
            model.with_item_rows(*given), recommender.renderer, recommender.catalogue, recommender.expert
        )

    def save(self, folder: Path) -> None:
        arrays = {"weights": self.weights, "intercept": self.intercept, "bias": np.array([self.bias], dtype=np.float32)}
        with atomic_path(folder / FILE) as temporary:
            temporary.write_bytes(save(arrays))

    @classmethod
    def load(cls, folder: Path) -> ColdRows | None:
        """None where the bundle has none. Raises InputError for a damaged file."""
        if not (folder / FILE).is_file():
            return None
        try:
            arrays = load_file(folder / FILE)
            return cls(arrays["weights"], arrays["intercept"], float(arrays["bias"][0]))
        except (SafetensorError, KeyError, OSError) as error:
            raise InputError(f"{folder / FILE} is damaged ({error}); make the bundle again.") from error

"""A memory: of every item the few others that follow it most, by item-KNN or SLIT, small enough to be served beside a model.

The history's items vote for their neighbours, the latest the most; the PROPOSED items with the most votes gain 1 / log2(1 + place), all
others nothing. With a model it makes a product of two experts, π(y | history) · exp(weight · gain(y)): what the memory does not propose
keeps the model's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import sparse

from sidrec.baselines.histories import history_matrix
from sidrec.baselines.item_knn import ItemKnn, keep_first, places_in_rows
from sidrec.baselines.slit import Slit
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path

NEIGHBOURS = 100  # of an item, at most: 8 bytes each
PROPOSED = 100  # items with a gain, at most
FORMAT = "1"


@dataclass(frozen=True)
class Memory:
    """neighbours: sparse float32 [N, N], row i holds the votes of item i, all above 0. decay: weight of a history item relative to the one
    after it. name: of the baseline that it was made from."""

    neighbours: sparse.csr_array
    decay: float
    name: str

    @classmethod
    def of(cls, baseline: ItemKnn | Slit) -> Memory:
        """The NEIGHBOURS largest positive entries of every row of the baseline's matrix; of equal ones the lower item."""
        matrix = baseline.similarities if isinstance(baseline, ItemKnn) else largest_of_dense(baseline.weights)
        positive = matrix.tocsr().astype(np.float32)
        positive.data = np.maximum(positive.data, np.float32(0))
        positive.eliminate_zeros()
        return cls(keep_first(places_in_rows(positive), NEIGHBOURS), baseline.decay, baseline.name)

    @property
    def n_items(self) -> int:
        return int(self.neighbours.shape[0])

    def gains(self, histories: list[np.ndarray], exclude_seen: bool = True) -> sparse.csr_array:
        """Sparse float32 [B, N]: 1 / log2(1 + place) of the PROPOSED items with the most votes, places 1, 2, …; of equal ones the lower
        item first. exclude_seen: an item of the history gains nothing and takes no place. One that came after the memory was made has no
        vote."""
        votes = (history_matrix(histories, self.n_items, self.decay).astype(np.float32) @ self.neighbours).tocoo()
        seen_rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        items = np.concatenate(histories)
        seen = (seen_rows * self.n_items + items)[items < self.n_items]
        may_gain = np.ones(len(votes.data), dtype=bool)
        if exclude_seen:
            may_gain = ~np.isin(votes.row.astype(np.int64) * self.n_items + votes.col, seen)
        entries = (votes.data[may_gain], (votes.row[may_gain], votes.col[may_gain]))
        ranked, places = places_in_rows(sparse.csr_array(entries, shape=votes.shape))
        proposed = places < PROPOSED
        discounts = (1 / np.log2(2 + places[proposed])).astype(np.float32)
        return sparse.csr_array((discounts, (ranked.row[proposed], ranked.col[proposed])), shape=votes.shape)

    def save(self, file: Path) -> None:
        """At most 8 bytes a neighbour and 8 an item."""
        arrays = {
            "starts": torch.from_numpy(self.neighbours.indptr.astype(np.int64)),
            "items": torch.from_numpy(self.neighbours.indices.astype(np.int32)),
            "votes": torch.from_numpy(self.neighbours.data),
        }
        with atomic_path(file) as temporary:
            save_file(arrays, temporary, metadata={"format": FORMAT, "name": self.name, "decay": repr(self.decay)})

    @classmethod
    def load(cls, file: Path) -> Memory:
        """Raises InputError for a file that an older evaluation did not write, or of another format."""
        if not file.is_file():
            raise InputError(f"{file} does not exist; run `sidrec evaluate` again with --overwrite true.")
        try:
            with safe_open(file, framework="np") as stored:
                about = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is not a dictionary)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is damaged ({error}); run `sidrec evaluate` again.") from error
        if about.get("format") != FORMAT or {*tensors} != {"starts", "items", "votes"}:
            raise InputError(f"{file} has format {about.get('format')}, not {FORMAT}; run `sidrec evaluate` again.")
        starts, items, votes = (tensors[name] for name in ("starts", "items", "votes"))
        n_items = len(starts) - 1
        neighbours = sparse.csr_array((votes, items, starts), shape=(n_items, n_items))
        return cls(neighbours, float(about["decay"]), about["name"])


def largest_of_dense(weights: np.ndarray) -> sparse.csr_array:
    """Of every row of [N, N] the NEIGHBOURS largest, and all that equal the least of these."""
    count = min(NEIGHBOURS, weights.shape[1])
    least = np.partition(weights, weights.shape[1] - count, axis=1)[:, weights.shape[1] - count]
    return sparse.csr_array(np.where(weights >= least[:, None], weights, np.float32(0)))

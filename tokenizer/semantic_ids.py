"""Semantic IDs: the L codes of every item, and the codebooks they index. The artefact that every later stage reads.

Files, in the run directory's `sid/`:
    codes_all.npy            int32 [N, L], unique per row, 0-based
    codes_raw.npy            int32 [N, L], the quantizer's own nearest codes, before rows were made unique
    codebooks.npz            codebook_0 … codebook_{L-1}, float32 [K_l, D]
    quantizer.safetensors    what gives codes to new items, where the SIDs have one
    sid.json                 {"0": ["<a_12>", "<b_7>", "<c_200>"], …}
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidrec.pipeline.arrays import read_npy, read_npz
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, write_json
from sidrec.pipeline.stage import require_finished
from sidrec.tokenizer.embeddings.item_vectors import Rows
from sidrec.tokenizer.new_items import NewItems, place_new_items
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers.level_sizes import LEVEL_LETTERS


def sid_token(level: int, code: int) -> str:
    """The token of `code` at `level`: `<a_12>` is code 12 of the first level."""
    return f"<{LEVEL_LETTERS[level]}_{code}>"


def tokens_by_item(codes: np.ndarray) -> dict[str, list[str]]:
    """{"0": ["<a_12>", "<b_7>"], …}, the layout of MiniOneRec's .index.json. codes: int [N, L]."""
    return {str(i): [sid_token(level, int(code)) for level, code in enumerate(row)] for i, row in enumerate(codes)}


@dataclass(frozen=True)
class SemanticIds:
    """codes, codes_raw: int32 [N, L]; codebooks: L arrays, float32 [K_l, e], one vector a code.

    quantizer: what made the codes; None for SIDs from elsewhere. Where it has one level less than the codes, the last level is a dedup
    token, an item's place among those with equal codes (0 in codes_raw), or an own token, the item's number.
    """

    codes: np.ndarray
    codes_raw: np.ndarray
    codebooks: list[np.ndarray]
    quantizer: Quantizer | None = None

    def __post_init__(self) -> None:
        assert self.codes.ndim == 2, f"codes must be [N, L], got {self.codes.shape}"
        assert self.codes.shape == self.codes_raw.shape
        assert len(self.codebooks) == self.codes.shape[1]
        assert (self.codes >= 0).all()
        assert (self.codes < np.array(self.level_sizes)).all()

    @property
    def n_items(self) -> int:
        return self.codes.shape[0]

    @property
    def n_levels(self) -> int:
        return self.codes.shape[1]

    @property
    def level_sizes(self) -> list[int]:
        """K_l: the number of codes of each level."""
        return [len(codebook) for codebook in self.codebooks]

    @property
    def n_distinct(self) -> int:
        """How many different semantic IDs the items have; `n_items` when no two share one."""
        return len(np.unique(self.codes, axis=0))

    @property
    def digest(self) -> str:
        """Hex sha256 of `codes` and the level sizes; a model stores it, so that it is never run with another SID set."""
        content = json.dumps([list(self.codes.shape), self.level_sizes]).encode() + self.codes.astype("<i4").tobytes()
        return hashlib.sha256(content).hexdigest()

    def tokens(self) -> list[str]:
        """Every SID token, level by level, code by code."""
        return [sid_token(level, code) for level, size in enumerate(self.level_sizes) for code in range(size)]

    def text(self, item: int) -> str:
        """An item's semantic ID as it is written: `<a_12><b_7><c_200>`."""
        return "".join(sid_token(level, int(code)) for level, code in enumerate(self.codes[item]))

    def encode(self, vectors: Rows, catalogue: Rows | None = None) -> NewItems:
        """Free, unique semantic IDs for items that come later, `vectors` [n, D]; the old ones stay. See `place_new_items`.

        vectors: as `ItemVectors` scales them (`quantizer.item_vectors`). catalogue: the old items' vectors [N, D], to find new rows that
        equal them. Raises InputError when there is no quantizer, when old items share SIDs, and when too few are free.
        """
        if self.quantizer is None:
            raise InputError(
                "these semantic IDs have no quantizer.safetensors, so new items cannot be coded; make them with `bash run_tokenizer.sh`."
            )
        if self.n_distinct < self.n_items:
            raise InputError(
                f"{self.n_items} items have {self.n_distinct} different semantic IDs; make them unique with `--unique assign` first."
            )
        return place_new_items(
            vectors, self.quantizer, self.codes, self.level_sizes, catalogue, last_codebook=self.codebooks[-1]
        )

    def extended(self, new: NewItems) -> SemanticIds:
        """These semantic IDs with those of new items after them."""
        raw = np.zeros_like(new.codes)
        raw[:, : new.nearest.shape[1]] = new.nearest
        both = np.concatenate([self.codes, new.codes]), np.concatenate([self.codes_raw, raw])
        return SemanticIds(*both, self.codebooks, self.quantizer)

    def save(self, folder: Path) -> list[Path]:
        """Write the files, each atomically; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in ("codes_all.npy", "codes_raw.npy", "codebooks.npz", "sid.json")]
        for path, codes in zip(paths, (self.codes, self.codes_raw), strict=False):
            with atomic_path(path) as temporary, temporary.open("wb") as handle:
                np.save(handle, codes.astype(np.int32))
        books: dict[str, Any] = {f"codebook_{level}": book for level, book in enumerate(self.codebooks)}
        with atomic_path(paths[2]) as temporary, temporary.open("wb") as handle:
            np.savez(handle, **books)
        write_json(paths[3], tokens_by_item(self.codes))
        if self.quantizer is not None:
            paths.append(folder / "quantizer.safetensors")
            self.quantizer.save(paths[-1])
        return paths

    @classmethod
    def read(cls, folder: Path) -> SemanticIds:
        """Read the files from any folder (a run's `sid/`, or a saved model's `semantic_ids/`)."""
        for name in ("codes_all.npy", "codes_raw.npy", "codebooks.npz"):
            if not (folder / name).exists():
                raise InputError(
                    f"{folder / name} is missing; make the semantic IDs again with `bash run_tokenizer.sh`."
                )
        books = read_npz(folder / "codebooks.npz")
        if set(books) != {f"codebook_{level}" for level in range(len(books))}:
            raise InputError(
                f"{folder / 'codebooks.npz'} holds {', '.join(books)}, not codebook_0 and on; make it again."
            )
        codebooks = [books[f"codebook_{level}"] for level in range(len(books))]
        saved = folder / "quantizer.safetensors"
        quantizer = Quantizer.load(saved) if saved.exists() else None
        codes_all, codes_raw = (read_npy(folder / f"codes_{name}.npy") for name in ("all", "raw"))
        return cls(codes_all, codes_raw, codebooks, quantizer)

    @classmethod
    def load(cls, run_dir: Path) -> SemanticIds:
        """A run's finished `sid` stage. Raises InputError when there is none, the data have changed since, or two items share a SID."""
        sids = cls.read(require_finished(run_dir, "sid", f"bash run_tokenizer.sh --run_dir {run_dir}"))
        if sids.n_distinct < sids.n_items:
            raise InputError(
                f"{run_dir / 'sid'} holds {sids.n_items} items but {sids.n_distinct} different semantic IDs; make them again with "
                "`--unique assign --overwrite true`."
            )
        return sids

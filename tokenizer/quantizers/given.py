"""Codes that were made elsewhere: read from a file, with codebooks from a file or fitted to the item vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.ranges import check_least
from sidrec.tokenizer.quantizers.kind import Kind
from sidrec.tokenizer.quantizers.level_sizes import check_level_sizes

if TYPE_CHECKING:
    from sidrec.pipeline.screen import Screen
    from sidrec.tokenizer.embeddings.item_vectors import Rows
    from sidrec.tokenizer.quantizer import Quantizer


@dataclass
class Given(Kind):
    """The extra token that only some items have is left out: --unique makes its own."""

    summary: ClassVar[str] = "the codes of --codes_file"
    needs_spread: ClassVar[bool] = False

    codes_file: str | None = field(
        default=None,
        metadata={
            "help": "SIDs from elsewhere: an .index.json as MiniOneRec writes it or an .npy with codes [items, levels]."
        },
    )
    codes_offset: int = field(
        default=0,
        metadata={
            "help": "The number that stands for the first code; 1 for the files of MiniOneRec's constrained and trained residual k-means."
        },
    )
    codebooks_file: str | None = field(
        default=None,
        metadata={
            "help": "An .npz with codebook_0, codebook_1, …, as long as the item vectors; default: the mean of each code's items."
        },
    )

    def __post_init__(self) -> None:
        check_least(self, "codes_offset", 0)

    def choose_level_sizes(self, asked: list[int], shape: tuple[int, ...], unique: str) -> list[int]:
        """Those of the codebooks, else those asked for, else what the largest codes need.

        Raises InputError when codes or codebooks do not fit the catalogue, the item vectors or each other.
        """
        if not self.codes_file:
            raise InputError(
                "the codes are to be given, but no --codes_file says which; give an .index.json or .npy file."
            )
        codes, books = self.read_codes(shape[0]), self.read_books(asked, shape[1])
        sizes = [len(book) for book in books] if books else asked
        sizes = sizes or [max(2, int(largest) + 1) for largest in codes.max(axis=0)]
        if len(sizes) != codes.shape[1]:
            other = self.codebooks_file or "--level_sizes"
            raise InputError(
                f"{self.codes_file} has {codes.shape[1]} codes an item, but {other} has {len(sizes)} levels; they must agree."
            )
        beyond = np.argwhere(codes >= np.array(sizes))
        if len(beyond):
            item, level = beyond[0].tolist()
            raise InputError(
                f"{self.codes_file} gives item {item} the code {codes[item, level]} on level {level + 1}, which has {sizes[level]} codes "
                "counted from 0; correct the file, the level's size or --codes_offset."
            )
        check_level_sizes(sizes, shape[0], clustered=0, unique=unique == "assign")
        return sizes

    def fit(
        self, vectors: Rows, level_sizes: list[int], seed: int, folder: Path | None = None, screen: Screen | None = None
    ) -> Quantizer:
        from sidrec.tokenizer.codebooks import Codebooks, fitted_codebooks
        from sidrec.tokenizer.quantizer import Quantizer

        books = self.read_books(level_sizes, vectors.shape[1])
        if books:
            return Quantizer(Codebooks(books))
        return Quantizer(fitted_codebooks(vectors, self.read_codes(len(vectors)), level_sizes))

    def encode(self, quantizer: Quantizer, vectors: Rows, seed: int) -> np.ndarray:
        """The codes of the file, int32 [N, L]: not the nearest ones."""
        return self.read_codes(len(vectors))

    def files(self) -> dict[str, Path]:
        names = {"codes_file": self.codes_file, "codebooks_file": self.codebooks_file}
        return {name: Path(file) for name, file in names.items() if file}

    def read_codes(self, n_items: int) -> np.ndarray:
        """The codes of `codes_file`, int32 [N, L]. Raises InputError when they are of another number of items."""
        from sidrec.tokenizer.interchange import read_codes

        path = self.files()["codes_file"]
        codes, has_extra = read_codes(path, self.codes_offset)
        if len(codes) != n_items:
            raise InputError(
                f"{path} has codes for {len(codes)} items, but the catalogue has {n_items}; use the file made for it."
            )
        return codes[:, :-1] if has_extra else codes

    def read_books(self, level_sizes: list[int], dimensions: int) -> list[np.ndarray] | None:
        """The codebooks of `codebooks_file`, float32 [K_l, D] each; None where no file is named. level_sizes: empty for any."""
        from sidrec.tokenizer.interchange import read_codebooks

        return (
            read_codebooks(Path(self.codebooks_file), level_sizes or None, dimensions) if self.codebooks_file else None
        )

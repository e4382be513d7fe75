"""A kind of quantizer: a dataclass of its settings that can learn codebooks. Each kind is one file beside this one.

No kind imports torch before it learns, so that `--help` is fast.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sidrec.tokenizer.quantizers.level_sizes import check_level_sizes, default_level_sizes

if TYPE_CHECKING:
    from sidrec.pipeline.screen import Screen
    from sidrec.tokenizer.embeddings.item_vectors import Rows
    from sidrec.tokenizer.quantizer import Quantizer


@dataclass
class Kind:
    """What the stage asks of a quantizer. A kind's fields are its settings, its flags; it must offer `fit`, and may change the rest."""

    summary: ClassVar[str] = ""  # a few words for --help
    is_trained: ClassVar[bool] = False  # learns in steps, and goes on from checkpoints in the stage's folder
    shares_rows: ClassVar[bool] = False  # several processes can learn it together
    needs_spread: ClassVar[bool] = True  # its codes come from the vectors, so these must differ

    def choose_level_sizes(self, asked: list[int], shape: tuple[int, ...], unique: str) -> list[int]:
        """K_l of each level. asked: --level_sizes, empty for none; shape: of the item vectors, [N, D]; unique: --unique.

        Raises InputError for sizes that the kind cannot have, that are larger than N, or that give fewer semantic IDs than items where
        every item needs one.
        """
        sizes = asked or default_level_sizes(shape[0], unique)
        check_level_sizes(sizes, shape[0], unique=unique == "assign")
        return sizes

    def check(self, vectors: Rows, level_sizes: list[int]) -> None:
        """Raise InputError for settings that do not suit the vectors [N, D] or the levels, before any work."""

    def fit(
        self, vectors: Rows, level_sizes: list[int], seed: int, folder: Path | None = None, screen: Screen | None = None
    ) -> Quantizer:
        """Learn codebooks of `level_sizes` from vectors [N, D]; the same bytes for the same seed.

        folder: where a trained kind writes checkpoints to go on from, and its reports; None for nowhere. screen: where progress is
        shown; None for nowhere.
        """
        raise NotImplementedError

    def encode(self, quantizer: Quantizer, vectors: Rows, seed: int) -> np.ndarray:
        """The items' codes, int32 [N, L], by what `fit` returned: the nearest ones, but for `exact_levels`."""
        from sidrec.tokenizer.kmeans.distributed import encode_together
        from sidrec.tokenizer.kmeans.residual_kmeans import codes_of_exact_levels

        n_exact = self.exact_levels(len(quantizer.codebooks.books))
        first = codes_of_exact_levels(vectors, quantizer.codebooks, n_exact) if n_exact else None
        return encode_together(quantizer, vectors, first)

    def exact_levels(self, n_levels: int) -> int:
        """Of how many levels, from the first, all codes shall have equally many items of the catalogue (or one more)."""
        return 0

    def files(self) -> dict[str, Path]:
        """The files that settings name, by the setting: they count by their content."""
        return {}

    def summary_lines(self, folder: Path) -> list[str]:
        """Sentences for the end of the stage, from the reports in `folder`."""
        return []

    def report_tables(self, folder: Path) -> list[str]:
        """HTML for the report's part on training, from the reports in `folder`."""
        return []

    def decisive_settings(self) -> dict[str, Any]:
        """Every setting; a file's path is left out, since a moved file is the same file."""
        return asdict(self) | dict.fromkeys(self.files(), "a file")

    def identity(self) -> dict[str, Any]:
        """The kind and its settings, as a checkpoint records them."""
        return {"kind": type(self).__name__} | self.decisive_settings()

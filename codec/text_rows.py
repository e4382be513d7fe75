from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class TextRows:
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    vocabulary: int = 4096
    stop: int = 1
    tokenizer: object = None

    @staticmethod
    def open(run_dir):
        f = Path(run_dir) / "text"
        from transformers import PreTrainedTokenizerFast

        return TextRows(
            *(np.load(f / f"{n}.npy", mmap_mode="r") for n in ("train", "valid", "test")),
            tokenizer=PreTrainedTokenizerFast.from_pretrained(f),
        )

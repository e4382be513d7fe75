"""Item vectors: `python -m sidrec.tokenizer.embed --run_dir outputs/demo`. Reads `data/`, writes `embeddings/`.

text           TF-IDF and SVD of the column `text` of items.parquet (or a sentence-transformers model: --text_encoder)
collaborative  SVD of which items occur near each other in the training part of the users' histories
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from sidrec.data.dataset import Dataset
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.files import atomic_path
from sidrec.pipeline.stage import Stage
from sidrec.tokenizer.config import TokenizerConfig
from sidrec.tokenizer.embeddings.collaborative import ppmi_svd
from sidrec.tokenizer.embeddings.text import encode_texts, tfidf_svd
from sidrec.tokenizer.quantizers.quantizer_settings import KINDS


def compute(source: str, dataset: Dataset, config: TokenizerConfig) -> np.ndarray:
    """The vectors of one source, float32 [N, D]."""
    if source == "collaborative":
        sequences = dataset.train_sequences
        return ppmi_svd(
            sequences, dataset.n_items, config.collaborative_dim, config.seed, config.window, config.negatives
        )
    texts = dataset.items["text"].fill_null("").to_list()
    if config.text_encoder:
        return encode_texts(texts, config.text_encoder, config.encoder_batch_size)
    return tfidf_svd(texts, config.text_dim, config.seed)


def main() -> None:
    config, *_ = parse_configs((TokenizerConfig, *KINDS))
    console = Console()
    run_dir = Path(config.run_dir)
    dataset = Dataset.load(run_dir)
    settings = config.embedding_settings()
    files = ["items.parquet"] + ["interactions.parquet"] * ("collaborative" in settings["sources"])
    stage = Stage(run_dir, "embeddings", settings, tuple(run_dir / "data" / name for name in files))
    if not config.overwrite and stage.is_finished():
        console.print(f"{stage.folder}: finished before; nothing to do.")
        return

    vectors = {config.path_of(source): compute(source, dataset, config) for source in settings["sources"]}

    stage.begin(config.overwrite)
    for path, rows in vectors.items():
        assert len(rows) == dataset.n_items
        with atomic_path(path) as temporary, temporary.open("wb") as handle:
            np.save(handle, rows)
        console.print(f"{path}: {rows.shape[0]:,} items, {rows.shape[1]} numbers each")
    stage.finish(*vectors)


if __name__ == "__main__":
    run_as_command(main)

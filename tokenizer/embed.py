"""Item vectors: `python -m sidrec.tokenizer.embed --run_dir outputs/demo`. Reads `data/`, writes `embeddings/`.

text           TF-IDF and SVD of the column `text` of items.parquet (or a sentence-transformers model: --text_encoder)
collaborative  SVD of which items occur near each other in the training part of the users' histories

Beside the vectors stand their encoders (`sidrec.tokenizer.embeddings.encoders`), for items that come later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage
from sidrec.tokenizer.config import TokenizerConfig, parse_arguments

if TYPE_CHECKING:
    from sidrec.data.dataset import Dataset
    from sidrec.tokenizer.embeddings.encoders import Encoder


def compute(source: str, dataset: Dataset, config: TokenizerConfig, screen: Screen) -> tuple[Encoder, np.ndarray]:
    """What encodes items that come later, and the vectors of one source, float32 [N, D]."""
    from sidrec.tokenizer.embeddings.collaborative import Unknown, ppmi_svd
    from sidrec.tokenizer.embeddings.text import TextModel, TfidfSvd

    if source == "collaborative":
        sequences = dataset.train_sequences
        rows = ppmi_svd(
            sequences, dataset.n_items, config.collaborative_dim, config.seed, config.window, config.negatives, screen
        )
        return Unknown.of(rows, config.seed), rows
    texts = dataset.items["text"].fill_null("").to_list()
    if config.text_encoder:
        return TextModel.fit(texts, config.text_encoder, config.encoder_batch_size, screen)
    return TfidfSvd.fit(texts, config.text_dim, config.seed, screen)


def predict_from_text(
    encoders: dict[str, Encoder], vectors: dict[str, np.ndarray], dataset: Dataset, seed: int
) -> list[str]:
    """Where there are both sources, put the collaborative vectors that texts let expect in the place of unknown ones: of items that come
    later, and of those that nobody has taken where the data keep such. Returns what is said of it."""
    from sidrec.tokenizer.embeddings.from_text import FromText, has_evidence
    from sidrec.tokenizer.embeddings.text import TextModel, TfidfSvd

    text = encoders.get("text")
    if not isinstance(text, TfidfSvd | TextModel) or "collaborative" not in encoders:
        return []
    from_text = FromText.fit(vectors["text"], vectors["collaborative"], seed, text)
    if from_text is None:
        return ["texts do not tell who takes an item: items that nobody has taken are coded by their text alone"]
    encoders["collaborative"] = from_text
    if not dataset.keeps_untaken:
        return []
    n_unknown = int((~has_evidence(vectors["collaborative"])).sum())
    vectors["collaborative"] = from_text.filled(vectors["text"], vectors["collaborative"])
    return [
        f"{n_unknown:,} items without evidence have the collaborative vector that their text lets expect (of the others, left out one by "
        f"one, texts explain {from_text.explained:.1%} of the variance)"
    ]


def main(arguments: list[str] | None = None) -> None:
    config, _ = parse_arguments(arguments, stage="embeddings")
    from sidrec.data.dataset import Dataset  # after --help, which shall be fast
    from sidrec.tokenizer.embeddings.collapse import sameness_note
    from sidrec.tokenizer.embeddings.encoders import save_encoders
    from sidrec.tokenizer.embeddings.sources import check_own_files

    screen = Screen("embeddings")
    dataset = Dataset.load(config.run_dir)
    files = ["items.parquet"] + ["interactions.parquet"] * ("collaborative" in config.sources)
    inputs = tuple(config.run_dir / "data" / name for name in files)
    stage = Stage(config.run_dir, "embeddings", config.fingerprint_of_vectors(), inputs)
    if not config.overwrite and stage.is_finished():
        screen.say(f"embeddings: finished already, nothing to do ({stage.folder})")
        return

    if dataset.n_items < 2:
        raise InputError(
            f"{config.run_dir / 'data'} holds one item only, so there is nothing to choose from; prepare the data with more items, or a "
            "lower --k_item."
        )
    check_own_files(config, dataset.n_items)
    screen.begin(f"vectors for {dataset.n_items:,} items from {' and '.join(config.computed_sources) or 'no source'}")
    lines, encoders = [], {}
    with stage.building(config.overwrite) as folder, screen.logging_to(folder / "log.txt"):
        vectors = {}
        for source in config.computed_sources:
            encoders[source], vectors[source] = compute(source, dataset, config, screen)
        lines += predict_from_text(encoders, vectors, dataset, config.seed)
        for source, rows in vectors.items():
            assert len(rows) == dataset.n_items
            with atomic_path(folder / f"{source}.npy") as temporary, temporary.open("wb") as handle:
                np.save(handle, rows)
            lines.append(f"{config.path_of(source)}: {rows.shape[0]:,} items, vectors of length {rows.shape[1]}")
            lines += sameness_note(source, rows)
        if encoders:
            save_encoders(encoders, folder)
    screen.summary("embeddings", lines)


if __name__ == "__main__":
    run_as_command(main)

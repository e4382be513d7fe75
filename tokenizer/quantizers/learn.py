"""From item vectors to a quantizer: which of the kinds, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sidrec.pipeline.files import write_json
from sidrec.tokenizer.embeddings.item_vectors import Rows
from sidrec.tokenizer.kmeans.distributed import encode_together
from sidrec.tokenizer.kmeans.residual_kmeans import fit
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers import coarse_to_fine, product, trained_quantizer
from sidrec.tokenizer.quantizers.fsq_autoencoder import check_fsq, learn_fsq
from sidrec.tokenizer.quantizers.given_codes import fitted_codebooks, random_codes
from sidrec.tokenizer.quantizers.kmeans_fsq import check_kmeans_fsq, fit_with_grid
from sidrec.tokenizer.quantizers.lora_autoencoder import build_lora, check_lora, source_blocks
from sidrec.tokenizer.quantizers.quantizer_settings import QuantizerSettings
from sidrec.tokenizer.report.lora import usage_report

AUTOENCODERS = ("rqkmeans_plus", "rqvae", "vq")


def check(settings: QuantizerSettings, vectors: Rows, level_sizes: list[int]) -> None:
    """Raise InputError for settings that do not suit the vectors [N, D] or the levels, before any work."""
    if settings.quantizer in (*AUTOENCODERS, "lora"):
        trained_quantizer.check(settings, vectors.shape[1], level_sizes)
    if settings.quantizer == "lora":
        check_lora(settings, len(source_blocks(vectors)), level_sizes)
    if settings.quantizer == "fsq":
        check_fsq(settings)
    if settings.quantizer == "rqkmeans_fsq":
        check_kmeans_fsq(settings.fsq, level_sizes, vectors.shape[1])


def learn(
    settings: QuantizerSettings, vectors: Rows, level_sizes: list[int], seed: int, folder: Path | None = None
) -> Quantizer:
    """The quantizer that `settings` name, learnt on `vectors` [N, D]; the same bytes for the same seed.

    folder: where a trained quantizer keeps checkpoints, to resume from, and writes its training.json, `lora` its lora.json too; None:
    nowhere.
    """
    check(settings, vectors, level_sizes)
    if settings.quantizer == "rqkmeans":
        return Quantizer(fit(vectors, level_sizes, seed, settings.kmeans))
    if settings.quantizer == "product":
        return Quantizer(product.fit(vectors, level_sizes, seed, settings.kmeans))
    if settings.quantizer == "coarse_to_fine":
        return Quantizer(coarse_to_fine.fit(vectors, level_sizes, seed, settings.kmeans))
    if settings.quantizer in AUTOENCODERS:
        model = trained_quantizer.build(settings, vectors, level_sizes, seed)
        return trained_quantizer.learn_by_training(model, settings, vectors, level_sizes, seed, folder)
    if settings.quantizer == "lora":
        model = build_lora(settings, source_blocks(vectors), level_sizes, seed)
        quantizer = trained_quantizer.learn_by_training(model, settings, vectors, level_sizes, seed, folder)
        if folder:
            write_json(folder / "lora.json", usage_report(model, vectors))
        return quantizer
    if settings.quantizer == "fsq":
        return learn_fsq(settings, vectors, seed, folder)
    if settings.quantizer == "rqkmeans_fsq":
        return Quantizer(fit_with_grid(vectors, level_sizes, seed, settings.kmeans, settings.fsq))
    assert settings.quantizer == "random", f"the quantizer {settings.quantizer!r} is not one that learns"
    return Quantizer(fitted_codebooks(vectors, random_codes(len(vectors), level_sizes, seed), level_sizes))


def learn_codes(
    settings: QuantizerSettings, vectors: Rows, level_sizes: list[int], seed: int, folder: Path | None = None
) -> tuple[Quantizer, np.ndarray]:
    """What `learn` returns, and the items' codes, int32 [N, L]: the nearest ones, or the random ones that `random` is about."""
    quantizer = learn(settings, vectors, level_sizes, seed, folder)
    if settings.quantizer == "random":
        return quantizer, random_codes(len(vectors), level_sizes, seed)
    return quantizer, encode_together(quantizer, vectors)

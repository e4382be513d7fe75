"""From item vectors to a quantizer: which of the kinds, by name."""

from __future__ import annotations

from pathlib import Path

from data.stage import InputError, write_json
from tokenizer import coarse_to_fine, product, trained_quantizer
from tokenizer.item_vectors import Rows
from tokenizer.lora_autoencoder import build_lora, check_lora, source_blocks
from tokenizer.lora_report import usage_report
from tokenizer.quantizer import Quantizer
from tokenizer.quantizer_settings import QuantizerSettings
from tokenizer.residual_kmeans import fit

AUTOENCODERS = ("rqkmeans_plus", "rqvae", "vq")


def check(settings: QuantizerSettings, vectors: Rows, level_sizes: list[int]) -> None:
    """Raise InputError for settings that do not suit the vectors [N, D] or the levels, before any work."""
    if settings.quantizer in (*AUTOENCODERS, "lora"):
        trained_quantizer.check(settings, vectors.shape[1], level_sizes)
    if settings.quantizer == "lora":
        check_lora(settings, len(source_blocks(vectors)), level_sizes)


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
        model = trained_quantizer.build(settings, len(vectors), vectors.shape[1], level_sizes, seed)
        return trained_quantizer.learn_by_training(model, settings, vectors, level_sizes, seed, folder)
    if settings.quantizer == "lora":
        model = build_lora(settings, source_blocks(vectors), level_sizes, seed)
        quantizer = trained_quantizer.learn_by_training(model, settings, vectors, level_sizes, seed, folder)
        if folder:
            write_json(folder / "lora.json", usage_report(model, vectors))
        return quantizer
    raise InputError(f"the quantizer {settings.quantizer!r} is not there yet.")

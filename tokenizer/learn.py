"""From item vectors to a quantizer: which of the kinds, by name."""

from __future__ import annotations

from data.stage import InputError
from tokenizer import coarse_to_fine, product
from tokenizer.item_vectors import Rows
from tokenizer.quantizer import Quantizer
from tokenizer.quantizer_settings import QuantizerSettings
from tokenizer.residual_kmeans import fit


def learn(settings: QuantizerSettings, vectors: Rows, level_sizes: list[int], seed: int) -> Quantizer:
    """The quantizer that `settings` name, learnt on `vectors` [N, D]; the same bytes for the same seed."""
    if settings.quantizer == "rqkmeans":
        return Quantizer(fit(vectors, level_sizes, seed, settings.kmeans))
    if settings.quantizer == "product":
        return Quantizer(product.fit(vectors, level_sizes, seed, settings.kmeans))
    if settings.quantizer == "coarse_to_fine":
        return Quantizer(coarse_to_fine.fit(vectors, level_sizes, seed, settings.kmeans))
    raise InputError(f"the quantizer {settings.quantizer!r} is not there yet.")

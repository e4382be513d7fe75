"""RQ-Kmeans+, RQ-VAE and VQ: three ways to build and start the same autoencoder.

rqkmeans_plus   encoder Z = X + MLP(X) with the MLP's last layer zero, so that Z = X at first; codebooks from residual k-means of X, so that
                the codes at step 0 are those of RQ-Kmeans; decoder zq + MLP(zq), likewise, or a random MLP as published. Needs e = D.
                (GPR, arXiv 2511.10138)
rqvae           encoder and decoder are MLPs with random weights, e is free. (RQ-VAE, arXiv 2203.01941; TIGER, arXiv 2305.05065)
vq              rqvae with a single level. (VQ-VAE, arXiv 1711.00937)
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json
from sidrec.tokenizer.autoencoders.autoencoder import Codebook, ResidualAutoencoder
from sidrec.tokenizer.autoencoders.ema_codebook import EmaCodebook
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.autoencoders.training import Training
from sidrec.tokenizer.embeddings.item_vectors import Rows
from sidrec.tokenizer.interchange import read_codebooks
from sidrec.tokenizer.kmeans.residual_kmeans import fit
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers.quantizer_settings import QuantizerSettings

DEFAULT_E_DIM = 32
PLUS_COMMITMENT = (
    1.0  # holds X + MLP(X) near X; with 0.25 the latents grow, and items held out lose what the others win
)
SAMPLED_ROWS = 4096


def check(settings: QuantizerSettings, dimensions: int, level_sizes: list[int]) -> None:
    """Raise InputError for settings that do not suit the vectors [N, dimensions] or each other, before any work."""
    training, kind = settings.training, settings.quantizer
    if kind == "rqkmeans_plus" and training.e_dim not in (None, dimensions):
        raise InputError(
            f"e_dim is {training.e_dim} but the item vectors have {dimensions} numbers; rqkmeans_plus adds its encoder's output to the "
            "vectors, so leave --e_dim out."
        )
    if kind != "rqkmeans_plus" and training.decoder == "residual":
        raise InputError(f"decoder is `residual`, which only rqkmeans_plus has; leave it out for {kind}.")
    if kind == "vq" and len(level_sizes) != 1:
        raise InputError(
            f"vq has one level, but level_sizes gives {len(level_sizes)} ({' '.join(map(str, level_sizes))}); give one number, or "
            "choose the quantizer rqvae."
        )
    if training.shared_codebook and kind != "rqvae":
        raise InputError(f"shared_codebook is of the quantizer rqvae, not of {kind}; leave it out.")
    if training.shared_codebook and len(set(level_sizes)) > 1:
        raise InputError(
            f"shared_codebook needs equal level_sizes, not {' '.join(map(str, level_sizes))}; make them equal or leave it out."
        )
    if training.codebook_start.endswith(".npz"):
        read_codebooks(
            Path(training.codebook_start), book_sizes(settings, level_sizes), latent_width(settings, dimensions)
        )


def latent_width(settings: QuantizerSettings, dimensions: int) -> int:
    """e: as long as the item vectors for rqkmeans_plus, else --e_dim."""
    return dimensions if settings.quantizer == "rqkmeans_plus" else settings.training.e_dim or DEFAULT_E_DIM


def book_sizes(settings: QuantizerSettings, level_sizes: list[int]) -> list[int]:
    """K of each distinct codebook: one per level, or a single one that all levels share."""
    return level_sizes[:1] if settings.training.shared_codebook else level_sizes


def fitting_scale(vectors: Rows) -> float:
    """The power of two that brings the root mean square of the numbers in `vectors` [N, D] nearest to 1, seen in at most 4,096 rows."""
    rows = vectors[np.unique(np.linspace(0, len(vectors) - 1, SAMPLED_ROWS, dtype=np.int64))]
    square = float(np.square(rows, dtype=np.float64).mean())
    return 2.0 ** round(-0.5 * math.log2(square)) if square > 0 else 1.0


def build(settings: QuantizerSettings, vectors: Rows, level_sizes: list[int], seed: int) -> ResidualAutoencoder:
    """The model for `vectors` [N, D], nothing learnt; its codebooks are uniform in [-1/K, 1/K], the start that is called `random`."""
    n_items, dimensions = len(vectors), vectors.shape[1]
    training, plus, e = settings.training, settings.quantizer == "rqkmeans_plus", latent_width(settings, dimensions)
    if plus and training.commitment is None:
        training = replace(training, commitment=PLUS_COMMITMENT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Mlp([(dimensions, e)], training.hidden_sizes, skip=plus)
        decoder = Mlp([(e, dimensions)], training.hidden_sizes[::-1], skip=plus and training.decoder != "mlp")
        starts = [torch.empty(K, e).uniform_(-1 / K, 1 / K) for K in book_sizes(settings, level_sizes)]
    books: list[Codebook | EmaCodebook] = []
    for start in starts:
        if training.codebook_update == "ema":
            rows_per_step = min(training.batch_size, n_items) * len(level_sizes) // len(starts)
            books.append(EmaCodebook(start, training.ema_decay, rows_per_step))
        else:
            books.append(Codebook(start))
    by_level = books * len(level_sizes) if training.shared_codebook else books
    # RQ-VAE is left as it is: scaled, its codebooks learn too slowly to follow their own encoder
    return ResidualAutoencoder(encoder, by_level, decoder, training, fitting_scale(vectors) if plus else 1.0)


def start_codebooks(
    model: ResidualAutoencoder, settings: QuantizerSettings, vectors: Rows, level_sizes: list[int], seed: int
) -> None:
    """Give the codebooks of `model` the vectors that `codebook_start` names: of an .npz file, or of k-means on the latents of `vectors`.

    A shared codebook starts as the union of a residual k-means with K / L codes on every level, so that it has codes of every scale.
    """
    how, sizes = settings.training.codebook_start, book_sizes(settings, level_sizes)
    if how.endswith(".npz"):
        model.start_codebooks(read_codebooks(Path(how), sizes, model.quantizer().codebooks.width))
    elif how == "kmeans":
        K, L = level_sizes[0], len(level_sizes)
        parts = [K * (level + 1) // L - K * level // L for level in range(L)]
        shared = settings.training.shared_codebook
        latents = model.quantizer().latents(vectors)
        books = fit(latents, [part for part in parts if part] if shared else level_sizes, seed, settings.kmeans).books
        model.start_codebooks([np.concatenate(books)] if shared else books)


def learn_by_training(
    model: ResidualAutoencoder,
    settings: QuantizerSettings,
    vectors: Rows,
    level_sizes: list[int],
    seed: int,
    folder: Path | None,
) -> Quantizer:
    """Start the codebooks of `model`, train it on `vectors` [N, D], and return what it learnt.

    folder: where checkpoints are kept while it trains, and the training curve is written to training.json, with the `scale` of the vectors
    whose losses it holds; None for neither. Raises InputError when the loss is not finite.
    """
    config = settings.recorded() | {"level_sizes": level_sizes, "seed": seed, "shape": list(vectors.shape)}
    training = Training(model, vectors, settings.training, seed, config, folder)
    curve = training.run(lambda: start_codebooks(model, settings, vectors, level_sizes, seed))
    if folder:
        write_json(folder / "training.json", curve | {"scale": model.scale})
    return model.quantizer()

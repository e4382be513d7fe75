"""How an autoencoder with residual codebooks is built, started and trained: the work that the trained quantizers share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidrec.pipeline.files import write_json
from sidrec.pipeline.screen import Screen
from sidrec.tokenizer.autoencoders.autoencoder import Codebook, ResidualAutoencoder
from sidrec.tokenizer.autoencoders.ema_codebook import EmaCodebook
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.autoencoders.settings import AutoencoderSettings, CodebookTrainingSettings
from sidrec.tokenizer.autoencoders.training import Training
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import Rows, chunks
from sidrec.tokenizer.interchange import read_codebooks
from sidrec.tokenizer.kmeans import residual_kmeans, soft_kmeans
from sidrec.tokenizer.quantizer import Quantizer

SAMPLED_ROWS = 4096
START_OF: dict[str, Callable[..., Codebooks]] = {  # by the name that `codebook_init` takes
    "kmeans": residual_kmeans.fit,
    "soft_kmeans": soft_kmeans.fit,
    "gmm": partial(soft_kmeans.fit, learn_shares=True),
}


def fitting_scale(vectors: Rows) -> float:
    """The power of two that brings the root mean square of the numbers in `vectors` [N, D] nearest to 1, seen in at most 4,096 rows."""
    square = float(np.square(_sampled(vectors), dtype=np.float64).mean())
    return 2.0 ** round(-0.5 * math.log2(square)) if square > 0 else 1.0


def _sampled(vectors: Rows) -> np.ndarray:
    """At most 4,096 rows of `vectors` [N, D], evenly spaced."""
    return vectors[np.unique(np.linspace(0, len(vectors) - 1, SAMPLED_ROWS, dtype=np.int64))]


def build(
    settings: AutoencoderSettings,
    vectors: Rows,
    level_sizes: list[int],
    seed: int,
    *,
    e_dim: int,
    skip_encoder: bool = False,
    skip_decoder: bool = False,
    zero_start: bool = True,
    shared_codebook: bool = False,
    scale: float = 1.0,
    groups: int = 1,
    join: str = "concat",
) -> ResidualAutoencoder:
    """The model for `vectors` [N, D], nothing learnt; its codebooks are uniform in [-1/K, 1/K], the start that is called `random`.

    skip_encoder, skip_decoder: start as the identity, X + MLP(X), which needs e_dim = D; without zero_start, the encoder's MLP(X)
    starts at random. shared_codebook: one module on all levels.
    groups: parts of the latent, coded apart; join: what the decoder takes of them, `concat` or `sum`.
    """
    N, D = vectors.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        beside = (settings.batch_norm, settings.dropout)
        encoder = Mlp([(D, e_dim)], settings.hidden_sizes, skip_encoder, *beside, zero_start)
        joined = e_dim // groups if join == "sum" else e_dim
        decoder = Mlp([(joined, D)], settings.hidden_sizes[::-1], skip_decoder, *beside)
        sizes = level_sizes[:1] if shared_codebook else level_sizes
        starts = [torch.empty(K, e_dim // groups).uniform_(-1 / K, 1 / K) for K in sizes]
    books: list[Codebook | EmaCodebook] = []
    for start in starts:
        if settings.codebook_update == "ema":
            rows_per_step = min(settings.batch_size, N) * len(level_sizes) // len(starts)
            books.append(EmaCodebook(start, settings.ema_decay, rows_per_step))
        else:
            books.append(Codebook(start))
    by_level = books * len(level_sizes) if shared_codebook else books
    return ResidualAutoencoder(encoder, by_level, decoder, settings, scale, groups, join)


def start_codebooks(
    model: ResidualAutoencoder,
    settings: CodebookTrainingSettings,
    vectors: Rows,
    level_sizes: list[int],
    seed: int,
    screen: Screen | None = None,
) -> None:
    """Give the codebooks of `model` the vectors that `codebook_init` names: of an .npz file, or of START_OF on the latents of `vectors`.

    A codebook that all levels share starts as the union of a residual k-means with K / L codes on every level, so that it has codes of
    every scale. Batch normalisation takes its means and variances from a sample of the vectors first: k-means shall see such latents
    as training does.
    """
    if settings.batch_norm:
        model.encoder.settle(model.scale * torch.tensor(_sampled(vectors), dtype=torch.float32))
    n_books = len(model.distinct_codebooks())
    if settings.codebook_init.endswith(".npz"):
        width = model.quantizer().codebooks.width
        model.start_codebooks(read_codebooks(Path(settings.codebook_init), level_sizes[:n_books], width))
    elif settings.codebook_init in START_OF:
        learn = START_OF[settings.codebook_init]
        latents = model.quantizer().latents(vectors)
        if model.groups > 1:
            model.start_codebooks(start_of_parts(latents, model, level_sizes, seed, settings, screen))
            return
        if n_books == len(level_sizes):
            model.start_codebooks(learn(latents, level_sizes, seed, settings, screen).books)
            return
        K, L = level_sizes[0], len(level_sizes)
        parts = [K * (level + 1) // L - K * level // L for level in range(L)]
        books = learn(latents, [part for part in parts if part], seed, settings, screen).books
        model.start_codebooks([np.concatenate(books)])


def start_of_parts(
    latents: Rows,
    model: ResidualAutoencoder,
    level_sizes: list[int],
    seed: int,
    settings: CodebookTrainingSettings,
    screen: Screen | None = None,
) -> list[np.ndarray]:
    """What codebooks start as, of each part of `latents` [N, e] by itself: a codebook [K, e] a level, zero outside the level's part."""
    learn = START_OF[settings.codebook_init]
    whole = np.concatenate([rows for _, rows in chunks(latents)])
    books: list[np.ndarray] = [np.empty(0)] * len(level_sizes)
    for group in range(model.groups):
        part = model.part(group, latents.shape[1])
        alone = np.zeros_like(whole)
        alone[:, part] = whole[:, part]
        sizes = level_sizes[group :: model.groups]
        books[group :: model.groups] = learn(alone, sizes, seed, settings, screen).books
    return books


def fit(
    model: ResidualAutoencoder,
    settings: CodebookTrainingSettings,
    vectors: Rows,
    level_sizes: list[int],
    seed: int,
    folder: Path | None,
    screen: Screen | None,
    identity: dict[str, Any],
) -> Quantizer:
    """Start the codebooks of `model`, train it on `vectors` [N, D], and return what it learnt.

    folder: where checkpoints are written while it trains, and the training curve to training.json, with the `scale` of the vectors
    whose losses it holds; None for neither. screen: where progress is shown, None for nowhere. identity: the settings that decide the
    result, for the checkpoints. Raises InputError when the loss is not finite.
    """
    identity = identity | {"level_sizes": level_sizes, "seed": seed, "shape": list(vectors.shape)}
    training = Training(model, vectors, settings, seed, identity, folder, screen)
    curve = training.run(lambda: start_codebooks(model, settings, vectors, level_sizes, seed, screen))
    if folder:
        write_json(folder / "training.json", curve | {"scale": model.scale})
    return model.quantizer()

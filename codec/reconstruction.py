"""How much of a text a codec gives back: token accuracy and cross-entropy, bits a token, the use of every codebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sidrec.codec.quantizer import level_perplexities
from sidrec.codec.rq_vae import RQVAE
from sidrec.codec.training import batch_of, pieces

ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Reconstructed:
    """Of n_tokens tokens: the share that comes back, and -log p(x | z) in nats. perplexity, dead: of each level, over all latents."""

    n_tokens: int
    accuracy: float
    cross_entropy: float
    perplexity: list[float]
    dead: list[int]


@torch.no_grad()
def reconstruct(codec: RQVAE, rows: np.ndarray, advance: Callable[[int], None] | None = None) -> Reconstructed:
    """What `codec`, in eval mode, gives back of rows [n, T], filled up at their end. advance: told of every batch's rows."""
    device = next(codec.parameters()).device
    correct, nats, tokens, codes = 0.0, 0.0, 0, list[np.ndarray]()
    for piece in pieces(len(rows), ROWS_AT_ONCE):
        ids, lengths = batch_of(rows[piece], device, codec.pad)
        made = codec(ids, lengths)
        n_tokens = int(lengths.sum())
        correct, tokens = correct + float(made.correct), tokens + n_tokens
        nats += float(made.cross_entropy) * n_tokens
        if made.quantized is not None:
            codes.append(made.quantized.codes[made.latent_exists.flatten()].cpu().numpy())
        if advance is not None:
            advance(len(ids))
    if not codes:
        return Reconstructed(tokens, correct / tokens, nats / tokens, [], [])
    every = np.concatenate(codes)
    dead = [size - len(np.unique(level)) for size, level in zip(codec.quantizer.sizes, every.T, strict=True)]
    return Reconstructed(tokens, correct / tokens, nats / tokens, level_perplexities(every), dead)

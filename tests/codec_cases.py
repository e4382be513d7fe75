"""Small codecs and rows of text for tests."""

from __future__ import annotations

import numpy as np
import torch

from sidrec.codec.rq_vae import RQVAE
from sidrec.codec.settings import CodecNetworkSettings, CodecQuantizerSettings

VOCABULARY = 50


def small_codec(compression: int = 4, *, causal: bool = True, kernel_size: int = 2, quantize: bool = True) -> RQVAE:
    """A codec with all its layers, width 16, whose branches are not 0, in eval mode."""
    torch.manual_seed(0)
    network = CodecNetworkSettings(
        compression=compression,
        hidden_size=16,
        latent_dim=16,
        num_attention_heads=2,
        causal=causal,
        kernel_size=kernel_size,
    )
    codec = RQVAE(network, CodecQuantizerSettings([8, 4], quantize=quantize), VOCABULARY)
    return shaken(codec)


def shaken(codec: RQVAE) -> RQVAE:
    """With branches and codebooks that are 0 no more, in eval mode."""
    with torch.no_grad():
        for name, weight in codec.named_parameters():
            if "norm" not in name and "scale" not in name:
                weight.add_(torch.randn_like(weight) * 0.1)
        for book in codec.quantizer.codebooks:
            book.start(torch.randn_like(book.weight))
    return codec.eval()


def token_rows(n_rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Rows of tokens from 1 on, int64 [n, T]."""
    return np.random.default_rng(seed).integers(1, VOCABULARY, (n_rows, length))

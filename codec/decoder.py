"""Latents become text: refined, doubled until every token has a position, and read off in one pass of a language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sidrec.codec.backbone import Backbone
from sidrec.codec.encoder import TextEncoder
from sidrec.codec.layers import Doubling, Halving, SwiGLUTransformerLayer
from sidrec.codec.settings import CodecNetworkSettings


class TextDecoder(nn.Module):
    """Self-attention over latents → linear → transposed convolutions → backbone, in one shot → vocabulary."""

    def __init__(self, backbone: Backbone, width: int, settings: CodecNetworkSettings) -> None:
        super().__init__()
        self.backbone, self.causal = backbone, settings.causal
        self.latent_layers = nn.ModuleList(
            SwiGLUTransformerLayer(
                settings.latent_dim, settings.num_attention_heads, settings.dropout, causal=settings.causal
            )
            for _ in range(settings.num_latent_layers)
        )
        self.project = nn.Linear(settings.latent_dim, width, bias=False)
        n_doublings = settings.compression.bit_length() - 1
        self.doublings = nn.ModuleList(
            Doubling(width, settings.kernel_size, causal=settings.causal) for _ in range(n_doublings)
        )

    @torch.no_grad()
    def undo(self, encoder: TextEncoder) -> None:
        """Begin as the encoder's mirror image."""
        self.project.weight.copy_(encoder.project.weight.T)
        for doubling, halving in zip(self.doublings, reversed(encoder.halvings), strict=True):
            assert isinstance(doubling, Doubling)
            assert isinstance(halving, Halving)
            doubling.undo(halving)

    def forward(self, latents: Tensor, n_latents: Tensor | None = None) -> Tensor:
        """Logits [B, T · compression, V] of latents [B, T, latent_dim], of which a row's first n_latents, int64 [B], exist."""
        exists = None
        if not self.causal and n_latents is not None:
            exists = torch.arange(latents.shape[1], device=latents.device) < n_latents[:, None]
        for layer in self.latent_layers:
            latents = layer(latents, exists)
        hidden = self.project(latents)
        for doubling in self.doublings:
            if exists is not None:  # a longer kernel would read what stands behind a row's end
                hidden, exists = hidden * exists[..., None], exists.repeat_interleave(2, 1)
            hidden = doubling(hidden)
        return self.backbone.logits(self.backbone.over(hidden, exists))

"""Text becomes latents: a language model's states, halved until every `compression` tokens are one, then refined."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.codec.backbone import Backbone
from sidrec.codec.layers import Halving, SwiGLUTransformerLayer
from sidrec.codec.settings import CodecNetworkSettings


class TextEncoder(nn.Module):
    """Backbone → strided convolutions → linear → self-attention over latents."""

    def __init__(self, backbone: Backbone, width: int, settings: CodecNetworkSettings) -> None:
        super().__init__()
        self.backbone, self.compression, self.causal = backbone, settings.compression, settings.causal
        n_halvings = settings.compression.bit_length() - 1
        self.halvings = nn.ModuleList(
            Halving(width, settings.kernel_size, causal=settings.causal) for _ in range(n_halvings)
        )
        self.project = nn.Linear(width, settings.latent_dim, bias=False)
        nn.init.orthogonal_(self.project.weight)
        self.latent_layers = nn.ModuleList(
            SwiGLUTransformerLayer(
                settings.latent_dim, settings.num_attention_heads, settings.dropout, causal=settings.causal
            )
            for _ in range(settings.num_latent_layers)
        )

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Latents [B, ⌈T / compression⌉, latent_dim] of input_ids, int64 [B, T], whose rows have `lengths` tokens, int64 [B].

        What stands behind a row's last token changes none of its latents.
        """
        assert input_ids.ndim == 2
        assert lengths.shape == input_ids.shape[:1]
        length = -(-input_ids.shape[1] // self.compression) * self.compression
        input_ids = functional.pad(input_ids, (0, length - input_ids.shape[1]))
        exists = torch.arange(length, device=lengths.device) < lengths[:, None]
        hidden = self.backbone.states(input_ids, None if self.causal else exists)
        hidden = hidden * exists[..., None]  # the last window may be short
        for halving in self.halvings:
            exists = exists[:, ::2]
            hidden = halving(hidden) * exists[..., None]
        latents = self.project(hidden)
        for layer in self.latent_layers:
            latents = layer(latents, None if self.causal else exists)
        return latents

"""An autoregressive model of the codec's codes: one position a latent, its codes written one after the other (arXiv 2203.01941).

SpatialTransformer reads a sequence of latents, position t the sum of the vectors of latent t's codes, and makes a state of all before the
next one. DepthTransformer writes that one's codes: its position 0 is the state, position d the sum of the first d codes' vectors.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from sidrec.codec.layers import SwiGLUTransformerLayer
from sidrec.codec.rq_transformer_settings import RQTransformerSettings
from sidrec.decoding.rq_transformer.blocks import KeyValues
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, write_json

CONFIG, WEIGHTS = "rq_transformer.json", "rq_transformer.safetensors"


class SpatialTransformer(nn.Module):
    """States [B, T, H] of inputs [B, T, H], each of the inputs up to its own."""

    def __init__(self, settings: RQTransformerSettings) -> None:
        super().__init__()
        self.layers = layers_of(settings, settings.spatial_layers)
        self.norm = nn.RMSNorm(settings.width)

    def forward(self, inputs: Tensor, caches: list[KeyValues] | None = None) -> Tensor:
        return self.norm(through(self.layers, inputs, caches))


class DepthTransformer(nn.Module):
    """States [n, D, H] of a latent's inputs [n, D, H]: before the first code, before the second, …"""

    def __init__(self, settings: RQTransformerSettings) -> None:
        super().__init__()
        self.layers = layers_of(settings, settings.depth_layers)
        self.norm = nn.RMSNorm(settings.width)

    def forward(self, inputs: Tensor, caches: list[KeyValues] | None = None) -> Tensor:
        return self.norm(through(self.layers, inputs, caches))


class RQTransformer(nn.Module):
    """codebooks: the codec's, [K_l, e] a level; they stay as they are."""

    def __init__(self, settings: RQTransformerSettings, codebooks: list[Tensor]) -> None:
        super().__init__()
        self.settings, self.sizes = settings, [len(book) for book in codebooks]
        for level, book in enumerate(codebooks):
            self.register_buffer(f"codebook_{level}", book.detach().clone().float())
        latent_dim = codebooks[0].shape[1]
        scale = torch.stack([book.float().square().mean() for book in codebooks]).sum().sqrt().clamp_min(1e-6)
        self.unit: Tensor
        self.register_buffer("unit", scale)  # a latent's usual size, by which inputs are divided
        self.project = nn.Linear(latent_dim, settings.width, bias=False)
        self.to_depth = nn.Linear(latent_dim, settings.width, bias=False)
        self.first = nn.Parameter(torch.randn(settings.width) * 0.02)  # before the first latent
        self.place = nn.Parameter(torch.randn(len(codebooks), settings.width) * 0.02)  # of a code in its latent
        self.spatial, self.depth = SpatialTransformer(settings), DepthTransformer(settings)
        self.heads = nn.ModuleList(nn.Linear(settings.width, size) for size in self.sizes)
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    @property
    def n_levels(self) -> int:
        return len(self.sizes)

    def codebook(self, level: int) -> Tensor:
        return self.get_buffer(f"codebook_{level}")

    def sums(self, codes: Tensor) -> Tensor:
        """[..., D', e]: after each of the codes, int64 [..., D'], the sum of the vectors so far, in units of a usual latent."""
        vectors = [functional.embedding(codes[..., level], self.codebook(level)) for level in range(codes.shape[-1])]
        return torch.stack(vectors, -2).cumsum(-2) / self.unit

    def states(self, codes: Tensor) -> Tensor:
        """[B, T, H]: before each latent, what is known of those before it. codes: int64 [B, T, D]."""
        inputs = self.project(self.sums(codes[:, :-1])[:, :, -1])
        first = self.first.expand(len(codes), 1, -1)
        return self.spatial(torch.cat([first, inputs], 1))

    def code_logits(self, states: Tensor, codes: Tensor) -> list[Tensor]:
        """Of every level [n, K_l]: the logits of its code, given the state [n, H] and the codes before it, of codes int64 [n, D]."""
        assert states.ndim == 2
        assert codes.shape == (len(states), self.n_levels)
        earlier = (
            self.to_depth(self.sums(codes[:, :-1]))
            if self.n_levels > 1
            else states.new_zeros(len(states), 0, states.shape[1])
        )
        hidden = self.depth(torch.cat([states[:, None], earlier], 1) + self.place)
        return [head(hidden[:, level]) for level, head in enumerate(self.heads)]

    def log_probs(self, codes: Tensor) -> Tensor:
        """float32 [B, T, D]: log p of every code given all codes before it. codes: int64 [B, T, D]."""
        states = self.states(codes).flatten(0, 1)
        flat = codes.flatten(0, 1)
        logits = self.code_logits(states, flat)
        each = [
            of_level.float().log_softmax(-1).gather(1, flat[:, level : level + 1])
            for level, of_level in enumerate(logits)
        ]
        return torch.cat(each, 1).view(codes.shape)

    def forward(self, codes: Tensor, exists: Tensor, targets: list[Tensor] | None = None) -> Tensor:
        """The loss: the mean over the latents that exist, bool [B, T], of -log p of their codes, int64 [B, T, D].

        targets: soft ones, float [B, T, K_l] a level, in place of the codes.
        """
        states, flat, real = self.states(codes).flatten(0, 1), codes.flatten(0, 1), exists.flatten()
        logits = self.code_logits(states[real], flat[real])
        if targets is None:
            losses = [
                functional.cross_entropy(of_level.float(), flat[real, level]) for level, of_level in enumerate(logits)
            ]
        else:
            soft = [target.flatten(0, 1)[real] for target in targets]
            losses = [
                functional.cross_entropy(of_level.float(), target)
                for of_level, target in zip(logits, soft, strict=True)
            ]
        return torch.stack(losses).sum()

    def save(self, folder: Path) -> None:
        """Write rq_transformer.json and rq_transformer.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        config = asdict(self.settings) | {"sizes": self.sizes, "latent_dim": self.codebook(0).shape[1]}
        write_json(folder / CONFIG, config)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)

    @staticmethod
    def load(folder: Path) -> RQTransformer:
        """The model in a folder, in eval mode. Raises InputError when it is not whole."""
        config = read_json(folder / CONFIG)
        try:
            sizes, latent_dim = config.pop("sizes"), int(config.pop("latent_dim"))
            model = RQTransformer(RQTransformerSettings(**config), [torch.zeros(size, latent_dim) for size in sizes])
            model.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{folder} holds no whole model of codes ({reason}); train it again.") from error
        return model.eval()


def layers_of(settings: RQTransformerSettings, n_layers: int) -> nn.ModuleList:
    return nn.ModuleList(
        SwiGLUTransformerLayer(settings.width, settings.heads, settings.transformer_dropout, causal=True)
        for _ in range(n_layers)
    )


def through(layers: nn.ModuleList, hidden: Tensor, caches: list[KeyValues] | None) -> Tensor:
    """What the layers make of hidden [B, T, H], each with its cache."""
    for place, layer in enumerate(layers):
        hidden = layer(hidden, None, caches[place] if caches is not None else None)
    return hidden

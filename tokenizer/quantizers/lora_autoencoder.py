"""The autoencoder of the quantizer `lora`: low-rank codebooks for several sources, and what can be switched on beside them.

As `ResidualAutoencoder`, with the encoder and decoder in one block per source, and where the settings say so:
    assignment soft, topk       in training, a level's vector is a mixture of codes, annealed to hard; the same mixture is summed and taken
                                from the residual. Outside training the code is always the nearest.
    condition_on_previous       level l codes r + W_l C_{l-1}[p]; p is the code before (in training perhaps a mixture), W_l is 0 at first.
                                Exported as codebooks [K_{l-1}, K_l, e]: C_l[k] - W_l C_{l-1}[p].
    alignment_weight            InfoNCE between the sources' latents of an item.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.autoencoders.alignment import alignment_loss
from sidrec.tokenizer.autoencoders.autoencoder import Quantized, ResidualAutoencoder
from sidrec.tokenizer.autoencoders.lora_codebook import LoraCodebook
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.autoencoders.soft_assignment import SoftAssignment
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors, Rows
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers.quantizer_settings import LoraSettings, QuantizerSettings, TrainingSettings
from sidrec.tokenizer.quantizers.trained_quantizer import latent_width


@dataclass
class LoraQuantized(Quantized):
    """coded: per level, what was compared with its codes, [n, e]: the residual, plus what the code before adds."""

    coded: list[Tensor]


class LoraAutoencoder(ResidualAutoencoder):
    """encoder: [n, D] → [n, e] and decoder: [n, e] → [n, D], a block a source; codebooks: one module a level."""

    def __init__(
        self, encoder: Mlp, codebooks: list[LoraCodebook], decoder: Mlp, training: TrainingSettings, lora: LoraSettings
    ) -> None:
        super().__init__(encoder, codebooks, decoder, training)  # type: ignore[arg-type]
        self.lora = lora
        self.soft: SoftAssignment | None = None
        if lora.assignment != "hard":
            top_k = lora.top_k if lora.assignment == "topk" else None
            self.soft = SoftAssignment(top_k, lora.temperature_start, lora.temperature_end)

    def quantize(self, z: Tensor, progress: float = 1.0) -> LoraQuantized:
        """Code latents [n, e] level by level; in training and where assignment is soft, at the temperature of `progress`."""
        temperature = self.soft.temperature(progress) if self.soft and self.training else None
        return self.quantize_at(z, temperature)

    def quantize_at(self, z: Tensor, temperature: float | None) -> LoraQuantized:
        """As `quantize`, at a given temperature; None: hard."""
        residual, previous = z, None
        residuals, chosen, codes, coded = [], [], [], []
        for book in self.codebooks:
            vectors = book.vectors()
            conditioned = self.lora.condition_on_previous and previous is not None
            offset = book.offset(previous) if conditioned else torch.zeros_like(z)
            residuals.append(residual)
            coded.append(residual + offset)
            codes.append(self.assign(coded[-1].detach(), vectors.detach()))
            if self.soft is None or temperature is None:
                previous = self.look_up(codes[-1], vectors)
            else:
                previous = self.soft.mixture(coded[-1].detach(), vectors, temperature)
            chosen.append(previous - offset)
            residual = self.pass_on(residual, chosen[-1])
        return LoraQuantized(torch.stack(chosen).sum(0), torch.stack(codes, 1), residuals, chosen, coded)

    def losses(self, x: Tensor, z: Tensor, quantized: Quantized, reconstructed: Tensor) -> dict[str, Tensor]:
        """Those of every autoencoder, the alignment of sources, and (outside training) ||A B|| / ||base|| of each level."""
        losses = super().losses(x, z, quantized, reconstructed)
        if self.lora.alignment_weight > 0:
            losses["alignment"] = alignment_loss(z, self.codebooks[0].blocks)
            losses["loss"] = losses["loss"] + self.lora.alignment_weight * losses["alignment"]
        if not self.training:
            losses |= {f"lora_share_{level}": book.shares().mean() for level, book in enumerate(self.codebooks)}
        return losses

    def diversity(self, quantized: Quantized) -> Tensor:
        """As in every autoencoder, of what the codes are compared with."""
        assert isinstance(quantized, LoraQuantized)
        return super().diversity(replace(quantized, residuals=quantized.coded))

    @torch.no_grad()
    def after_step(self, quantized: Quantized, step: int, rng: np.random.Generator) -> int:
        """As in every autoencoder; dead codes move to what the codes are compared with."""
        assert isinstance(quantized, LoraQuantized)
        return super().after_step(replace(quantized, residuals=quantized.coded), step, rng)

    @torch.no_grad()
    def quantizer(self) -> Quantizer:
        """What has been learnt so far, A B and the code before written into the codebooks."""
        own = [book.vectors() for book in self.codebooks]
        books = [own[0]]
        for book, before, vectors in zip(self.codebooks[1:], own, own[1:], strict=False):
            if self.lora.condition_on_previous:
                vectors = vectors - book.offset(before)[:, None]  # [K_before, K, e]
            books.append(vectors)
        return Quantizer(Codebooks([vectors.numpy().copy() for vectors in books]), self.encoder, self.decoder)


def source_blocks(vectors: Rows) -> list[int]:
    """D_s: how many numbers of an item vector each source gives; a plain array is one source."""
    return vectors.blocks if isinstance(vectors, ItemVectors) else [vectors.shape[1]]


def check_lora(settings: QuantizerSettings, n_sources: int, level_sizes: list[int]) -> None:
    """Raise InputError for settings that low-rank codebooks of these levels and sources cannot follow, before any work."""
    training, lora = settings.training, settings.lora
    refused = {
        "codebook_update `ema`": (training.codebook_update == "ema", "learns A and B by gradient"),
        "reset_every": (training.reset_every > 0 and lora.base == "frozen", "has a frozen base, which cannot be moved"),
        "sinkhorn_epsilon": (
            training.sinkhorn_epsilon > 0 and lora.assignment != "hard",
            f"mixes codes in training (assignment `{lora.assignment}`)",
        ),
    }
    for name, (wrong, reason) in refused.items():
        if wrong:
            raise InputError(f"{name} is set, but this lora quantizer {reason}; leave {name.split()[0]} out.")
    if lora.assignment == "topk" and lora.top_k > min(level_sizes):
        raise InputError(f"top_k {lora.top_k} is more than the {min(level_sizes)} codes of a level; lower it.")
    if len(set(level_sizes)) > 1 and (lora.share_a == "all" or lora.inherit_levels):
        cause = "share_a `all`" if lora.share_a == "all" else "inherit_levels"
        raise InputError(f"{cause} needs level_sizes that are all equal, not {' '.join(map(str, level_sizes))}.")
    e_dim = latent_width(settings, 0)
    if lora.rank > min(*level_sizes, e_dim):
        raise InputError(
            f"rank {lora.rank} is above the smallest of level_sizes and e_dim, {min(*level_sizes, e_dim)}; lower it."
        )
    if e_dim < n_sources:
        raise InputError(f"e_dim {e_dim} is less than one number for each of {n_sources} sources; raise it.")
    if lora.alignment_weight > 0 and n_sources < 2:
        raise InputError(
            "alignment_weight is set, but there is one source only; name two in --sources or leave it out."
        )
    if lora.alignment_weight > 0 and e_dim % n_sources:
        raise InputError(
            f"alignment_weight compares the sources' latents, but e_dim {e_dim} is no multiple of {n_sources} sources; "
            f"--e_dim {e_dim + n_sources - e_dim % n_sources} is."
        )


def build_lora(settings: QuantizerSettings, sources: list[int], level_sizes: list[int], seed: int) -> LoraAutoencoder:
    """The model before it has seen a vector. sources: D_s of each source.

    e_dim is divided among the sources evenly (the first ones have one more where there is a remainder). The base codebooks are uniform in
    [-1/K, 1/K], the start that is called `random`. The same weights for the same seed.
    """
    training, e_dim = settings.training, latent_width(settings, sum(sources))
    own = [e_dim // len(sources) + (source < e_dim % len(sources)) for source in range(len(sources))]  # e_m
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Mlp(list(zip(sources, own, strict=True)), training.hidden_sizes)
        decoder = Mlp(list(zip(own, sources, strict=True)), training.hidden_sizes[::-1])
        books: list[LoraCodebook] = []
        for K in level_sizes:
            start = torch.empty(K, e_dim).uniform_(-1 / K, 1 / K)
            books.append(LoraCodebook(start, own, settings.lora, books[-1] if books else None))
    return LoraAutoencoder(encoder, books, decoder, training, settings.lora)

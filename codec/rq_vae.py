"""The codec: text → latents → codes → latents → text, in one network that is saved as one folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional

from sidrec.codec.backbone import PretrainedBackbone, backbones
from sidrec.codec.decoder import TextDecoder
from sidrec.codec.encoder import TextEncoder
from sidrec.codec.layers import compressed_length
from sidrec.codec.quantizer import QuantizedLatents, ResidualQuantizer
from sidrec.codec.settings import CodecNetworkSettings, CodecQuantizerSettings
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, write_json

CONFIG, WEIGHTS = "codec.json", "codec.safetensors"


@dataclass(frozen=True)
class Reconstruction:
    """logits: [B, T', V], T' the tokens of all latents. exists: bool [B, T']; latent_exists: bool [B, T' / compression].

    quantized: of all latents, those behind a row's end included.
    """

    loss: Tensor
    cross_entropy: Tensor
    correct: Tensor
    logits: Tensor
    exists: Tensor
    latent_exists: Tensor
    quantized: QuantizedLatents | None


class RQVAE(nn.Module):
    """TextEncoder, ResidualQuantizer, TextDecoder."""

    def __init__(
        self,
        network: CodecNetworkSettings,
        quantizer: CodecQuantizerSettings,
        vocabulary: int,
        rows_per_step: int = 1,
        pad: int = 0,
        language_model: dict[str, Any] | None = None,
    ) -> None:
        """rows_per_step: latents of a training step, by which codes count as dead. pad: the token that rows are filled up with.

        language_model: its configuration, when loaded.
        """
        super().__init__()
        self.network, self.settings, self.vocabulary, self.pad = network, quantizer, vocabulary, pad
        encoding, decoding, width = backbones(network, vocabulary, language_model)
        self.encoder = TextEncoder(encoding, width, network)
        self.decoder = TextDecoder(decoding, width, network)
        self.decoder.undo(self.encoder)
        self.quantizer = ResidualQuantizer(network.latent_dim, quantizer, rows_per_step)
        self.rows_per_step = rows_per_step

    def resize(self, sizes: list[int]) -> None:
        """New codebooks of these sizes, not yet started."""
        self.settings = replace(self.settings, codebook_sizes=sizes)
        self.quantizer = ResidualQuantizer(self.network.latent_dim, self.settings, self.rows_per_step)

    @property
    def compression(self) -> int:
        return self.network.compression

    @property
    def bits_a_token(self) -> float:
        return self.quantizer.bits / self.compression

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Reconstruction:
        """What training needs. input_ids: int64 [B, T]; lengths: int64 [B], the tokens of each row."""
        latents = self.encoder(input_ids, lengths)
        n_latents, width = latents.shape[1:]
        quantized = self.quantizer(latents.reshape(-1, width)) if self.settings.quantize else None
        vectors = quantized.vectors.view_as(latents) if quantized is not None else latents
        logits = self.decoder(vectors, self.latent_lengths(lengths))
        length = n_latents * self.compression
        target = functional.pad(input_ids, (0, length - input_ids.shape[1]))
        exists = torch.arange(length, device=lengths.device) < lengths[:, None]
        losses = functional.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
        cross_entropy = (losses * exists.flatten()).sum() / exists.sum()
        correct = ((logits.argmax(-1) == target) & exists).sum()
        loss = cross_entropy
        if quantized is not None:
            loss = loss + self.settings.commitment_weight * quantized.commitment
        places = torch.arange(n_latents, device=lengths.device)
        latent_exists = places < self.latent_lengths(lengths)[:, None]
        return Reconstruction(loss, cross_entropy, correct, logits, exists, latent_exists, quantized)

    def latent_lengths(self, lengths: Tensor) -> Tensor:
        """Latents of each row, int64 [B]."""
        return -(-lengths // self.compression)

    @torch.no_grad()
    def encode(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Codes int64 [B, ⌈T / compression⌉, L]; those of latents behind a row's end say nothing."""
        latents = self.encoder(input_ids, lengths)
        codes = self.quantizer(latents.flatten(0, 1)).codes
        return codes.view(*latents.shape[:2], -1)

    @torch.no_grad()
    def decode(self, codes: Tensor, n_latents: Tensor | None = None) -> Tensor:
        """Tokens int64 [B, T · compression] of codes int64 [B, T, L], each the likeliest at its place."""
        return self.decoder(self.quantizer.vectors_of(codes), n_latents).argmax(-1)

    def n_latents(self, length: int) -> int:
        return compressed_length(length, self.compression)

    def save(self, folder: Path) -> None:
        """Write codec.json and codec.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        backbone = self.encoder.backbone
        described = backbone.model.config.to_diff_dict() if isinstance(backbone, PretrainedBackbone) else None
        config = {
            "network": asdict(self.network),
            "quantizer": asdict(self.settings),
            "vocabulary": self.vocabulary,
            "pad": self.pad,
            "language_model": described,
        }
        write_json(folder / CONFIG, config)
        save_model(self, str(folder / WEIGHTS))

    @staticmethod
    def load(folder: Path) -> RQVAE:
        """The codec in a folder, in eval mode. Raises InputError when it is not whole."""
        config = read_json(folder / CONFIG)
        try:
            network, quantizer = (
                CodecNetworkSettings(**config["network"]),
                CodecQuantizerSettings(**config["quantizer"]),
            )
            vocabulary, pad = int(config["vocabulary"]), int(config["pad"])
            codec = RQVAE(network, quantizer, vocabulary, pad=pad, language_model=config["language_model"])
            load_model(codec, folder / WEIGHTS)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{folder} holds no whole codec ({reason}); train it again.") from error
        return codec.eval()

"""What the training loop needs of the codec: its loss on rows of text, its figures on valid, its codebooks' start, its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.codec.backbone import PretrainedBackbone
from sidrec.codec.level_sizes import sizes_by_gain
from sidrec.codec.reconstruction import reconstruct
from sidrec.codec.rq_vae import RQVAE
from sidrec.codec.training import StepLoss, batch_of, pieces
from sidrec.pipeline.files import write_json

START_LATENTS_A_CODE = 4  # latents of the codebooks' start, for every code of the largest level
ROWS_AT_ONCE = 32


class CodecLearner:
    """network: the codec. train, valid: rows [n, T] of text."""

    def __init__(self, codec: RQVAE, train: np.ndarray, valid: np.ndarray) -> None:
        self.network, self.codec, self.train, self.valid = codec, codec, train, valid

    def start(self, seed: int) -> None:
        """Let the codebooks begin as k-means of latents, drawn by the seed, and so the same in every process."""
        if self.codec.settings.quantize:
            rng = np.random.default_rng([seed, 0])
            self.codec.quantizer.start(self.some_latents(rng), rng)

    def size_levels(self, seed: int) -> None:
        """Give every level as many codes as pay by `size_gain`, where that is set."""
        settings = self.codec.settings
        if settings.quantize and settings.size_gain > 0:
            rng = np.random.default_rng([seed, 1])
            self.codec.resize(sizes_by_gain(self.some_latents(rng), settings.codebook_sizes, settings.size_gain, rng))

    def some_latents(self, rng: np.random.Generator) -> Tensor:
        """Latents [n, e] of drawn rows of train, START_LATENTS_A_CODE for every code of the largest level at least."""
        wanted = START_LATENTS_A_CODE * max(self.codec.quantizer.sizes)
        n_rows = min(len(self.train), -(-wanted // self.codec.n_latents(self.train.shape[1])))
        rows = self.train[np.sort(rng.choice(len(self.train), n_rows, replace=False))]
        device = next(self.codec.parameters()).device
        latents = []
        with torch.no_grad():
            for piece in pieces(len(rows), ROWS_AT_ONCE):
                ids, lengths = batch_of(rows[piece], device, self.codec.pad)
                of_rows = self.codec.encoder(ids, lengths)
                places = torch.arange(of_rows.shape[1], device=device)
                latents.append(of_rows[places < self.codec.latent_lengths(lengths)[:, None]])
        return torch.cat(latents)

    def loss(self, network: nn.Module, rows: np.ndarray, rng: np.random.Generator) -> StepLoss:
        ids, lengths = batch_of(self.train[rows], next(self.codec.parameters()).device, self.codec.pad)
        made = network(ids, lengths)
        quantized = made.quantized

        def after(step: int, draws: np.random.Generator) -> None:
            if quantized is not None:
                self.codec.quantizer.after_step(quantized, made.latent_exists.flatten(), step, draws)

        return StepLoss(made.loss, lengths.sum(), after)

    def measure(self) -> dict[str, Any]:
        measured = reconstruct(self.codec, self.valid)
        return {
            "accuracy": measured.accuracy,
            "cross_entropy": measured.cross_entropy,
            "perplexity": measured.perplexity,
        }

    def slow_weights(self) -> list[nn.Parameter]:
        """The backbones'."""
        return [*self.codec.encoder.backbone.parameters(), *self.codec.decoder.backbone.parameters()]

    def write_report(self, folder: Path, curve: list[dict[str, Any]]) -> list[str]:
        """report.json; returns the end-of-stage lines."""
        codec, last = self.codec, curve[-1]
        n_parameters = sum(weight.numel() for weight in codec.parameters())
        figures = {
            "compression": codec.compression,
            "bits_a_token": codec.bits_a_token,
            "parameters": n_parameters,
            "accuracy": last["accuracy"],
            "cross_entropy": last["cross_entropy"],
            "curve": curve,
        }
        write_json(folder / "report.json", figures)
        backbone = (
            codec.network.model_name_or_path if isinstance(codec.encoder.backbone, PretrainedBackbone) else "scratch"
        )
        lines = [
            f"{n_parameters / 1e6:.2f}M parameters ({backbone}); {codec.compression} tokens a latent, "
            f"{codec.bits_a_token:.1f} bits a token",
            f"of the valid tokens {last['accuracy']:.1%} come back; cross-entropy {last['cross_entropy']:.3f} nats a token",
        ]
        if last["perplexity"]:
            pairs = zip(last["perplexity"], codec.quantizer.sizes, strict=True)
            lines.append("codes in use (perplexity): " + ", ".join(f"{used:.0f}/{size}" for used, size in pairs))
        return [*lines, f"the codec is in {folder}"]

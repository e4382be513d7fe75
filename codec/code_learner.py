"""What the training loop needs of the RQ-Transformer: codes made once, its loss on them, its figures on valid, its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.codec.quantizer import ResidualQuantizer
from sidrec.codec.rq_transformer import RQTransformer
from sidrec.codec.rq_vae import RQVAE
from sidrec.codec.training import StepLoss, batch_of, pieces
from sidrec.pipeline.files import atomic_path, write_json
from sidrec.pipeline.screen import Screen
from sidrec.tokenizer.kmeans.nearest import distances

ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class CodedText:
    """codes: int32 [n, T, D] of rows of text. n_latents: int64 [n], how many of a row's exist. latents: float32 [n, T, e], or None."""

    codes: np.ndarray
    n_latents: np.ndarray
    latents: np.ndarray | None = None

    @torch.no_grad()
    @staticmethod
    def of(codec: RQVAE, rows: np.ndarray, screen: Screen, with_latents: bool = False) -> CodedText:
        """What the codec, in eval mode, makes of rows [n, T] of text."""
        device = next(codec.parameters()).device
        codes, lengths, latents = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
        with screen.bar("encoding", len(rows), "rows") as bar:
            for piece in pieces(len(rows), ROWS_AT_ONCE):
                ids, of_rows = batch_of(rows[piece], device, codec.pad)
                made = codec.encoder(ids, of_rows)
                coded = codec.quantizer(made.flatten(0, 1)).codes.view(*made.shape[:2], -1)
                codes.append(coded.cpu().numpy().astype(np.int32))
                lengths.append(codec.latent_lengths(of_rows).cpu().numpy())
                if with_latents:
                    latents.append(made.float().cpu().numpy())
                bar.advance(len(ids))
        return CodedText(
            np.concatenate(codes), np.concatenate(lengths), np.concatenate(latents) if with_latents else None
        )

    def save(self, path: Path) -> None:
        """One .npz file, atomically."""
        arrays: dict[str, Any] = {"codes": self.codes, "n_latents": self.n_latents}
        if self.latents is not None:
            arrays["latents"] = self.latents
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as handle:
            np.savez(handle, **arrays)

    @staticmethod
    def load(path: Path) -> CodedText:
        with np.load(path, allow_pickle=False) as arrays:
            return CodedText(arrays["codes"], arrays["n_latents"], arrays.get("latents"))


class CodeLearner:
    """network: the RQ-Transformer. quantizer: the codec's, for soft targets."""

    def __init__(self, model: RQTransformer, quantizer: ResidualQuantizer, train: CodedText, valid: CodedText) -> None:
        self.network, self.model, self.quantizer, self.train, self.valid = model, model, quantizer, train, valid

    def loss(self, network: nn.Module, rows: np.ndarray, rng: np.random.Generator) -> StepLoss:
        device = self.model.first.device
        codes, exists = self._batch(self.train, rows, device)
        temperature = self.model.settings.code_temperature
        if temperature == 0 or self.train.latents is None:
            return StepLoss(network(codes, exists), exists.sum())
        latents = torch.from_numpy(self.train.latents[rows]).to(device)
        generator = torch.Generator(device=device).manual_seed(int(rng.integers(2**63)))
        drawn, targets = drawn_codes(self.quantizer, latents, temperature, generator)
        return StepLoss(network(drawn, exists, targets), exists.sum())

    def _batch(self, coded: CodedText, rows: np.ndarray | slice, device: torch.device) -> tuple[Tensor, Tensor]:
        codes = torch.from_numpy(coded.codes[rows].astype(np.int64)).to(device)
        lengths = torch.from_numpy(coded.n_latents[rows]).to(device)
        return codes, torch.arange(codes.shape[1], device=device) < lengths[:, None]

    def measure(self) -> dict[str, Any]:
        """loss: nats a latent; loss_1, …: of each of its codes."""
        total, n_latents = torch.zeros(self.model.n_levels, dtype=torch.float64), 0
        for piece in pieces(len(self.valid.codes), ROWS_AT_ONCE):
            codes, exists = self._batch(self.valid, piece, self.model.first.device)
            log_probs = self.model.log_probs(codes)[exists]
            total -= log_probs.double().sum(0).cpu()
            n_latents += int(exists.sum())
        each = (total / n_latents).tolist()
        return {"loss": sum(each)} | {f"loss_{level}": loss for level, loss in enumerate(each, 1)}

    def slow_weights(self) -> list[nn.Parameter]:
        return []

    def write_report(self, folder: Path, curve: list[dict[str, Any]], compression: int) -> list[str]:
        """report.json; returns the end-of-stage lines."""
        last = curve[-1]
        n_parameters = sum(weight.numel() for weight in self.model.parameters())
        nats = last["loss"] / compression
        write_json(folder / "report.json", {"parameters": n_parameters, "nats_a_token": nats, "curve": curve})
        levels = ", ".join(f"{last[f'loss_{level}']:.2f}" for level in range(1, self.model.n_levels + 1))
        return [
            f"{n_parameters / 1e6:.2f}M parameters; valid loss {last['loss']:.3f} nats a latent, {nats:.3f} a token",
            f"by code: {levels} nats",
            f"the model is in {folder}; `sidrec codec complete --prompt TEXT` goes on from a text",
        ]


@torch.no_grad()
def drawn_codes(
    quantizer: ResidualQuantizer, latents: Tensor, temperature: float, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Codes drawn by softmax(-squared distance / temperature), int64 [B, T, D], and these probabilities, [B, T, K_l] a level.

    latents: [B, T, e]. A level's residual is what the drawn codes before it have left (arXiv 2203.01941, 3.2.3).
    """
    left, codes, shares = latents.flatten(0, 1), list[Tensor](), list[Tensor]()
    for level in range(len(quantizer.sizes)):
        vectors = quantizer.book(level).vectors()
        share = (-distances(left, vectors) / temperature).softmax(-1)
        code = torch.multinomial(share, 1, generator=generator)[:, 0]
        codes.append(code)
        shares.append(share.view(*latents.shape[:2], -1))
        left = left - functional.embedding(code, vectors)
    return torch.stack(codes, 1).view(*latents.shape[:2], -1), shares

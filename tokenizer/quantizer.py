"""A quantizer that has learnt: vectors → latents → codes, and back. What is saved to code items that come later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path
from sidrec.tokenizer.autoencoders.finite_scalar import bound
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors, Rows, SourceScale, chunks


@dataclass(frozen=True)
class Quantizer:
    """Encoder [n, D] → [n, e], codebooks of latents, decoder [n, e] → [n, D].

    encoder, decoder: None is the identity (then e = D). fsq_levels: levels of each latent dimension when it is bounded before coding
    (finite scalar quantization), fsq_symmetric: on a symmetric grid; empty: it is not. scales: how the item vectors were made of their
    sources, where that is known.
    """

    codebooks: Codebooks
    encoder: Mlp | None = None
    decoder: Mlp | None = None
    fsq_levels: tuple[int, ...] = ()
    scales: tuple[SourceScale, ...] = ()
    fsq_symmetric: bool = False

    def item_vectors(self, sources: list[np.ndarray]) -> ItemVectors:
        """Vectors [n, D] of new items, made of their `sources` [n, D_s] as those of the old items were.

        Raises InputError when the sources are not as many or not as wide as then.
        """
        widths, wanted = [source.shape[1] for source in sources], [scale.width for scale in self.scales]
        if widths != wanted:
            raise InputError(
                f"the new items' sources have {widths} numbers a row, but the semantic IDs were made from {wanted}; give the same sources "
                "in the same order."
            )
        return ItemVectors(sources, [scale.weight for scale in self.scales], [scale.floor for scale in self.scales])

    def latents(self, vectors: Rows) -> Rows:
        """The latents of `vectors` [N, D]: [N, e] rows, computed when they are asked for."""
        return vectors if self.encoder is None and not self.fsq_levels else _Latents(self, vectors)

    def encode(self, vectors: Rows, first: np.ndarray | None = None) -> np.ndarray:
        """The quantizer's own codes. vectors: [N, D]; first: see `Codebooks.encode`. Returns int32 [N, L]; rows may be equal."""
        return self.codebooks.encode(self.latents(vectors), first)

    @torch.inference_mode()
    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Vectors [n, D] from (quantized) latents [n, e]."""
        return latents if self.decoder is None else self.decoder(torch.tensor(latents)).numpy()

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """The vectors that codes stand for. codes: [n, <= L]. Returns float32 [n, D]."""
        return self.decode(self.codebooks.reconstruct(codes))

    def mean_squared_errors(self, vectors: Rows, codes: np.ndarray) -> list[float]:
        """After each level: the mean over items of ||x - x̂||^2, a sum over D, so that 1.0 means unit rows not explained at all."""
        assert codes.shape == (len(vectors), len(self.codebooks.books))
        totals = np.zeros(codes.shape[1])
        for rows, chunk in chunks(vectors):
            for level, latents in enumerate(self.codebooks.partial_sums(codes[rows])):
                difference = chunk - self.decode(latents)
                totals[level] += np.einsum("nd,nd->", difference, difference, dtype=np.float64)
        return [float(total) for total in totals / len(vectors)]

    def save(self, path: Path) -> None:
        """One safetensors file: weights and codebooks, and in its metadata how the modules are built."""
        tensors = {f"codebook_{level}": torch.from_numpy(book) for level, book in enumerate(self.codebooks.books)}
        tensors |= {f"prices_{level}": torch.from_numpy(price) for level, price in enumerate(self.codebooks.prices)}
        built: dict[str, Any] = {
            "fsq_levels": list(self.fsq_levels),
            "scales": [asdict(scale) for scale in self.scales],
        }
        if self.fsq_symmetric:
            built["fsq_symmetric"] = True
        for name, module in (("encoder", self.encoder), ("decoder", self.decoder)):
            if module is not None:
                built[name] = module.settings()
                tensors |= {f"{name}.{key}": weight for key, weight in module.state_dict().items()}
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(contiguous, metadata={"quantizer": json.dumps(built, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path) -> Quantizer:
        """Read what `save` wrote. Raises InputError when the file is not a quantizer's, or a tensor is missing or too many."""
        try:
            with safe_open(path, framework="pt") as file:
                built = json.loads((file.metadata() or {})["quantizer"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            n_levels = sum(name.startswith("codebook_") for name in tensors)
            books = [tensors.pop(f"codebook_{level}").numpy() for level in range(n_levels)]
            prices = [tensors.pop(f"prices_{level}").numpy() for level in range(n_levels)]
            modules: dict[str, Mlp] = {}
            for name in ("encoder", "decoder"):
                if name in built:
                    modules[name] = Mlp(**built[name])
                    keys = [key for key in tensors if key.startswith(f"{name}.")]
                    modules[name].load_state_dict({key.removeprefix(f"{name}."): tensors.pop(key) for key in keys})
                    modules[name].eval()
        except (OSError, KeyError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} is not a quantizer of this project ({reason}); make the SIDs again.") from error
        scales = tuple(SourceScale(**scale) for scale in built.get("scales", []))
        levels, symmetric = tuple(built["fsq_levels"]), built.get("fsq_symmetric", False)
        encoder, decoder = modules.get("encoder"), modules.get("decoder")
        return cls(Codebooks(books, prices), encoder, decoder, levels, scales, symmetric)


class _Latents:
    """Rows [N, e] that the encoder makes when they are asked for."""

    def __init__(self, quantizer: Quantizer, vectors: Rows) -> None:
        self.quantizer, self.vectors = quantizer, vectors
        self.shape = (len(vectors), quantizer.codebooks.width)

    def __len__(self) -> int:
        return self.shape[0]

    @torch.inference_mode()
    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        latents = torch.tensor(self.vectors[rows], dtype=torch.float32)
        if self.quantizer.encoder is not None:
            latents = self.quantizer.encoder(latents)
        if self.quantizer.fsq_levels:
            latents = bound(latents, self.quantizer.fsq_levels, self.quantizer.fsq_symmetric)
        return latents.numpy()

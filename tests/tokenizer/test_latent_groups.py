"""Product quantization trained in the latent: loss and gradient as written group by group, the exported quantizer, the start, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.autoencoders.autoencoder import ResidualAutoencoder
from sidrec.tokenizer.autoencoders.fitting import start_codebooks
from sidrec.tokenizer.autoencoders.training import Training
from sidrec.tokenizer.kmeans.residual_kmeans import fit
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers.rqvae import Rqvae

N, D, E = 240, 9, 6


def settings(**changed: Any) -> Rqvae:
    small = {"e_dim": E, "hidden_sizes": [16], "training_steps": 120, "batch_size": 64, "warmup_steps": 5}
    return Rqvae(**{**small, "evaluate_every": 60, **changed})


def vectors(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(12, D))[rng.integers(0, 12, N)] + 0.4 * rng.normal(size=(N, D))).astype(np.float32)


def built(chosen: Rqvae, sizes: list[int]) -> ResidualAutoencoder:
    """A model with codebooks of the data's own size, nothing trained."""
    model = chosen.build(vectors(), sizes, 0)
    start_codebooks(model, chosen, vectors(), sizes, 0)
    return model


def written(model: ResidualAutoencoder, x: Tensor, groups: int, join: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(losses, codes [n, L], zq [n, e]): every part by itself, its losses averaged over its levels, then over the groups."""
    z = model.encoder(x)
    codes, parts, codebook, commitment = {}, [], [], []
    for group, left in enumerate(z.chunk(groups, 1)):
        total, of_group = torch.zeros_like(left), []
        for level in range(group, len(model.codebooks), groups):
            book = model.codebooks[level].weight
            codes[level] = (left[:, None] - book).square().sum(2).argmin(1)
            e = book[codes[level]]
            of_group.append((((left.detach() - e) ** 2).mean(), ((left - e.detach()) ** 2).mean()))
            total, left = total + e, left - e.detach()
        parts.append(total)
        codebook.append(sum(pair[0] for pair in of_group) / len(of_group))
        commitment.append(sum(pair[1] for pair in of_group) / len(of_group))
    zq = torch.cat(parts, 1)
    passed = z + (zq - z).detach()
    reconstructed = model.decoder(sum(passed.chunk(groups, 1)) if join == "sum" else passed)
    losses = {"codebook": sum(codebook) / groups, "commitment": sum(commitment) / groups}
    losses["reconstruction"] = ((reconstructed - x) ** 2).mean()
    losses["loss"] = losses["reconstruction"] + losses["codebook"] + 0.25 * losses["commitment"]
    return losses, torch.stack([codes[level] for level in sorted(codes)], 1), zq


CASES = [(2, "concat", [8, 5]), (2, "sum", [8, 8, 5, 4]), (3, "sum", [4, 5, 6]), (3, "concat", [4] * 6)]


@pytest.mark.parametrize(("groups", "join", "sizes"), CASES)
def test_loss_and_gradient_are_those_of_the_parts(groups: int, join: str, sizes: list[int]) -> None:
    model = built(settings(groups=groups, join_groups=join), sizes).double()
    x = torch.from_numpy(vectors()).double()
    losses, quantized = model(x)
    wanted, codes, zq = written(model, x, groups, join)
    assert torch.equal(quantized.codes, codes)
    torch.testing.assert_close(quantized.zq, zq)
    parameters = list(model.parameters())
    for name, value in wanted.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-9), name
        pair = [
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            for loss in (losses[name], value)
        ]
        for gradient, formula in zip(*pair, strict=True):
            if formula is not None:
                torch.testing.assert_close(gradient, formula, rtol=1e-7, atol=1e-11)
    assert [tuple(book.weight.shape) for book in model.codebooks] == [(size, E // groups) for size in sizes]


@pytest.mark.parametrize(("groups", "join", "sizes"), CASES)
def test_the_exported_quantizer_codes_and_decodes_as_the_model(
    groups: int, join: str, sizes: list[int], tmp_path: Path
) -> None:
    model = built(settings(groups=groups, join_groups=join), sizes).eval()
    x = torch.from_numpy(vectors())
    with torch.no_grad():
        quantized = model(x)[1]
        reconstructed = model.decode(quantized.zq)
    model.quantizer().save(tmp_path / "quantizer.safetensors")
    quantizer = Quantizer.load(tmp_path / "quantizer.safetensors")
    codes = quantizer.encode(vectors())
    same = (codes == quantized.codes.numpy()).all(1)
    assert same.mean() > 0.99, "but for ties of rounding"
    np.testing.assert_allclose(quantizer.reconstruct(codes)[same], reconstructed.numpy()[same], atol=1e-5)
    size = E // groups
    for level, book in enumerate(quantizer.codebooks.books):
        outside = np.delete(book, np.s_[level % groups * size : (level % groups + 1) * size], axis=1)
        assert not outside.any()
        assert book.any()


def test_every_part_starts_as_kmeans_of_its_own_numbers() -> None:
    chosen = settings(groups=2)
    model = chosen.build(vectors(), [8, 6, 4, 4], 0)
    latents = model.quantizer().latents(vectors())[:]
    start_codebooks(model, chosen, vectors(), [8, 6, 4, 4], 0)
    for group in (0, 1):
        part = fit(np.ascontiguousarray(latents[:, 3 * group : 3 * group + 3]), [[8, 4], [6, 4]][group], 0, chosen)
        for book, wanted in zip([model.codebooks[group], model.codebooks[group + 2]], part.books, strict=True):
            np.testing.assert_allclose(book.weight.detach(), wanted, atol=1e-5)


def test_a_run_starts_from_the_codebooks_of_another(tmp_path: Path) -> None:
    books = built(settings(groups=2), [8, 8]).quantizer().codebooks.books
    np.savez(tmp_path / "books.npz", codebook_0=books[0], codebook_1=books[1])
    again = built(settings(groups=2, codebook_init=str(tmp_path / "books.npz")), [8, 8]).quantizer().codebooks.books
    for book, before in zip(again, books, strict=True):
        np.testing.assert_array_equal(book, before)


@pytest.mark.parametrize(
    "changed",
    [
        {"join_groups": "concat"},
        {"join_groups": "sum"},
        {"codebook_update": "ema"},
        {"assignment": "topk", "soft_weights": "learnt", "soft_levels": [1]},
        {"rotation_trick": True, "diversity_weight": 0.01},
    ],
    ids=str,
)
def test_training_lowers_the_error(changed: dict[str, Any]) -> None:
    chosen, sizes = settings(groups=2, reset_every=10, **changed), [8, 8]
    model = chosen.build(vectors(), sizes, 0)
    curve = Training(model, vectors(), chosen, 0, {}).run(lambda: start_codebooks(model, chosen, vectors(), sizes, 0))
    assert curve["rows"][-1]["reconstruction"] < 0.8 * curve["rows"][0]["reconstruction"]


def test_the_first_level_of_each_group_is_coarse() -> None:
    model = built(settings(groups=2, coarse_weight=2.0, fine_weight=0.5), [4, 4, 4, 4])
    assert model.level_weights() == [2.0, 2.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"groups": 4}, "e_dim 6 cannot be cut into 4 groups of equal length"),
        ({"groups": 0}, "groups is 0; it must be a whole number of at least 1"),
        ({"groups": 2, "shared_codebook": True}, "shared_codebook and groups exclude each other"),
        ({"join_groups": "sum"}, "join_groups is set, but has no effect while groups is 1"),
        ({"groups": 2, "join_groups": "mean"}, "join_groups is 'mean'; it must be one of `concat`, `sum`"),
        ({"groups": 2}, "level_sizes has 3 levels, which are no equal share for 2 groups"),
    ],
)
def test_groups_that_cannot_be_are_refused(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        settings(**changed).check(vectors(), [4, 4, 4])

"""The perceptron of the trained quantizers: dropout and batch normalisation against their formulas, and what is exported of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256
from sidrec.tokenizer.autoencoders import fitting
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.autoencoders.training import Training
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers import QUANTIZERS

BOTH: dict[str, Any] = {"dropout": 0.2, "batch_norm": True}
SHORT: dict[str, Any] = {"hidden_sizes": [16, 12], "training_steps": 40, "warmup_steps": 5, "batch_size": 64} | BOTH
KINDS = {
    "rqkmeans_plus": {},
    "rqvae": {"e_dim": 5},
    "vq": {"e_dim": 5},
    "lora": {"e_dim": 6, "rank": 3},
    "fsq": {"fsq_levels": [4, 3], "fsq_tokens": 2},
}
SIZES = {"vq": [8], "fsq": [12, 12]}


def rows(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def vectors() -> np.ndarray:
    values = rows(300, 12).numpy()
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_batch_norm_stands_between_every_linear_but_the_last_and_its_relu() -> None:
    mlp = Mlp([(5, 3)], [7, 6], batch_norm=True).double()
    x = rows(40, 5).double()
    weights = list(mlp.named_parameters())
    assert len(weights) == 3 * 2 + 2 * 2
    hidden = x
    linears = [layer for layer in mlp.stacks[0] if isinstance(layer, torch.nn.Linear)]  # type: ignore[union-attr]
    for linear in linears[:-1]:
        hidden = hidden @ linear.weight.T + linear.bias
        mean, variance = hidden.mean(0), hidden.var(0, correction=0)
        hidden = ((hidden - mean) / (variance + 1e-5).sqrt()).clamp_min(0)
    torch.testing.assert_close(mlp.train()(x), hidden @ linears[-1].weight.T + linears[-1].bias)


def test_dropout_zeroes_its_share_of_a_linears_inputs_in_training_only() -> None:
    mlp = Mlp([(400, 400)], [], dropout=0.3)
    first, last = mlp.ends()[0]
    assert first is last
    torch.nn.init.eye_(first.weight)
    x = rows(50, 400)
    dropped = mlp.train()(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(dropped[dropped != 0], x[dropped != 0] / 0.7)
    assert torch.equal(mlp.eval()(x), x)


def test_settled_batch_norm_codes_as_training_on_these_rows_does() -> None:
    mlp = Mlp([(5, 3), (4, 2)], [7, 6], **BOTH)
    x = rows(20_000, 9)
    before = mlp.eval()(x)
    mlp.settle(x)
    assert mlp.training
    settled = mlp.eval()(x)
    without_dropout = Mlp(mlp.blocks, mlp.hidden, batch_norm=True)
    without_dropout.load_state_dict(
        dict(zip(without_dropout.state_dict(), mlp.state_dict().values(), strict=True))  # dropout has no weights
    )
    torch.testing.assert_close(settled, without_dropout.train()(x), atol=1e-3, rtol=1e-3)
    assert float((settled - before).detach().abs().max()) > 0.1
    assert all(module.momentum == 0.1 for module in mlp.modules() if isinstance(module, torch.nn.BatchNorm1d))


@pytest.mark.parametrize("skip", [False, True])
def test_a_rescaled_copy_is_for_use_and_scaled(skip: bool) -> None:
    mlp = Mlp([(5, 5)], [7], skip=skip, **BOTH)
    torch.nn.init.normal_(mlp.ends()[0][1].weight)
    mlp.settle(rows(100, 5))
    x, gain = rows(30, 5, seed=1), 4.0
    copy = mlp.rescaled(gain, 1 / gain)
    assert not copy.training
    assert mlp.training
    assert torch.equal(copy(x), mlp.eval()(gain * x) / gain)


def test_what_is_at_its_default_is_not_written() -> None:
    assert set(Mlp([(2, 2)], [3]).settings()) == {"blocks", "hidden", "skip"}
    assert Mlp([(2, 2)], [3], **BOTH).settings() == {"blocks": [[2, 2]], "hidden": [3], "skip": False} | BOTH


def test_rqkmeans_plus_with_both_starts_as_rqkmeans_bit_for_bit() -> None:
    settings: Any = QUANTIZERS["rqkmeans_plus"](**SHORT)
    model = settings.build(vectors(), [8, 8], 3)
    fitting.start_codebooks(model, settings, vectors(), [8, 8], 3)
    start, plain = model.quantizer(), QUANTIZERS["rqkmeans"]().fit(vectors(), [8, 8], 3)
    assert np.array_equal(start.latents(vectors())[:], vectors())
    assert np.array_equal(start.encode(vectors()), plain.encode(vectors()))


def test_kmeans_starts_on_latents_as_training_sees_them() -> None:
    """Before it is settled, batch normalisation would leave the latents where no step of training has them."""
    settings: Any = QUANTIZERS["rqvae"](**SHORT | {"e_dim": 5, "dropout": 0.0})
    model = settings.build(vectors(), [16, 8], 0)
    fitting.start_codebooks(model, settings, vectors(), [16, 8], 0)
    z = model.train().encode(torch.from_numpy(vectors())).detach()
    error = (z - model.quantize(z).zq.detach()).square().sum()
    assert float(error) < 0.5 * float((z - z.mean(0)).square().sum())


@pytest.mark.parametrize("name", KINDS)
def test_what_is_exported_is_saved_and_coded_as_the_model_codes(name: str, tmp_path: Path) -> None:
    """Twice the same codes: nothing is drawn at random any more, and the file holds the running means."""
    settings: Any = QUANTIZERS[name](**SHORT | KINDS[name])
    quantizer = settings.fit(vectors(), SIZES.get(name, [8, 8]), 0, tmp_path)
    codes = quantizer.encode(vectors())
    np.testing.assert_array_equal(quantizer.encode(vectors()), codes)
    quantizer.save(tmp_path / "quantizer")
    again = Quantizer.load(tmp_path / "quantizer")
    np.testing.assert_array_equal(again.encode(vectors()), codes)
    np.testing.assert_array_equal(again.reconstruct(codes), quantizer.reconstruct(codes))


def test_a_killed_training_with_dropout_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = QUANTIZERS["rqvae"](**SHORT | {"e_dim": 5, "evaluate_every": 10})
    undisturbed = settings.fit(vectors(), [8, 8], 0, tmp_path / "a")
    step = Training._step

    def until_17(self: Training, number: int) -> Any:
        if number == 17:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Training, "_step", until_17)
    with pytest.raises(KeyboardInterrupt):
        settings.fit(vectors(), [8, 8], 0, tmp_path / "b")
    monkeypatch.setattr(Training, "_step", step)
    torch.manual_seed(99)  # what is drawn does not depend on what was drawn before
    resumed = settings.fit(vectors(), [8, 8], 0, tmp_path / "b")
    for folder, quantizer in (("a", undisturbed), ("b", resumed)):
        quantizer.save(tmp_path / folder / "quantizer")
    assert sha256(tmp_path / "a" / "quantizer") == sha256(tmp_path / "b" / "quantizer")
    other: Any = QUANTIZERS["rqvae"](**SHORT | {"e_dim": 5, "evaluate_every": 10, "dropout": 0.0})
    other.fit(vectors(), [8, 8], 0).save(tmp_path / "other")
    assert sha256(tmp_path / "a" / "quantizer") != sha256(tmp_path / "other")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dropout": 1.0}, "dropout is 1.0; it must be a share below 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"batch_norm": True, "hidden_sizes": []}, "batch_norm is set, but has no effect while hidden_sizes is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        QUANTIZERS["rqkmeans_plus"](**changed)

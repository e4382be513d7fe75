"""The model of codes: nothing is read too early, a cache changes nothing, beams against every latent, first losses, soft targets."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_cases import small_codec

from sidrec.codec.code_learner import drawn_codes
from sidrec.codec.generation import Continuation, Sampling, continued
from sidrec.codec.rq_transformer import RQTransformer
from sidrec.codec.rq_transformer_settings import RQTransformerSettings
from sidrec.pipeline.errors import InputError

SIZES = [5, 3, 2]


def model_of_codes(depth_layers: int = 1, **settings) -> RQTransformer:
    torch.manual_seed(0)
    settings = RQTransformerSettings(
        width=16, spatial_layers=2, depth_layers=depth_layers, heads=2, transformer_dropout=0.0, **settings
    )
    model = RQTransformer(settings, [torch.randn(size, 8) for size in SIZES])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.add_(torch.randn_like(weight) * 0.2)
    return model.eval()


def codes_of(n_rows: int, n_latents: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.stack([rng.integers(0, size, (n_rows, n_latents)) for size in SIZES], -1))


def test_a_code_depends_on_those_before_it_alone() -> None:
    model, codes = model_of_codes(), codes_of(1, 4)
    before = model.log_probs(codes)
    for latent, level in itertools.product(range(4), range(3)):
        changed = codes.clone()
        changed[0, latent, level] = (changed[0, latent, level] + 1) % SIZES[level]
        after = model.log_probs(changed).flatten()
        place = latent * 3 + level
        assert torch.allclose(after[:place], before.flatten()[:place], atol=1e-5)
        if place < 11:
            assert not torch.allclose(after[place + 1 :], before.flatten()[place + 1 :], atol=1e-4)


def test_the_probabilities_of_all_latents_sum_to_one() -> None:
    model = model_of_codes()
    every = torch.tensor(list(itertools.product(*map(range, SIZES))))
    start = codes_of(1, 3).expand(len(every), -1, -1).clone()
    start[:, 2] = every
    assert model.log_probs(start)[:, 2].sum(1).exp().sum().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("depth_layers", [1, 2])
def test_generation_with_a_cache_is_the_likeliest_code_by_the_whole_sequence(depth_layers: int) -> None:
    """Every greedy code against the argmax of a pass over the whole sequence without a cache."""
    model, prompt = model_of_codes(depth_layers), codes_of(3, 2)
    written = continued(model, prompt, 4, Sampling())
    assert written.shape == (3, 4, 3)
    whole = torch.cat([prompt, written], 1)
    states = model.states(whole)
    for latent in range(2, 6):
        logits = model.code_logits(states[:, latent], whole[:, latent])
        assert [of_level.argmax(-1).tolist() for of_level in logits] == whole[:, latent].T.tolist()


def test_generation_from_nothing() -> None:
    assert continued(model_of_codes(), torch.empty(2, 0, 3, dtype=torch.int64), 2, Sampling()).shape == (2, 2, 3)


def test_beams_as_wide_as_all_latents_are_in_the_order_of_their_probabilities() -> None:
    model, prompt = model_of_codes(), codes_of(2, 3)
    codes, scores = Continuation(model, prompt).likeliest(30)
    every = torch.tensor(list(itertools.product(*map(range, SIZES))))
    for row in range(2):
        sequences = torch.cat([prompt[row].expand(30, -1, -1), every[:, None]], 1)
        expected, order = model.log_probs(sequences)[:, 3].sum(1).sort(descending=True)
        assert torch.allclose(scores[row], expected, atol=1e-4)
        assert codes[row].tolist() == every[order].tolist()


def test_draws_have_the_models_shares() -> None:
    model = model_of_codes()
    prompt = codes_of(1, 2).expand(4000, -1, -1)
    drawn = Continuation(model, prompt).next_codes(Sampling(temperature=1.0), torch.Generator().manual_seed(0))
    expected = model.code_logits(model.states(torch.cat([prompt[:1], drawn[:1, None]], 1))[:, 2], drawn[:1])[0].softmax(
        -1
    )[0]
    shares = torch.bincount(drawn[:, 0], minlength=5) / 4000
    assert torch.allclose(shares, expected, atol=0.03)
    top = Continuation(model, prompt).next_codes(Sampling(temperature=1.0, top_k=1), torch.Generator().manual_seed(0))
    assert top[:, 0].unique().tolist() == [int(expected.argmax())]


def test_the_loss_is_the_mean_over_latents_that_exist() -> None:
    model, codes = model_of_codes(), codes_of(2, 3)
    exists = torch.tensor([[True, True, True], [True, False, False]])
    assert model(codes, exists).item() == pytest.approx(-model.log_probs(codes)[exists].sum(1).mean().item(), rel=1e-5)
    certain = [torch.nn.functional.one_hot(codes[..., level], size).float() for level, size in enumerate(SIZES)]
    assert model(codes, exists, certain).item() == pytest.approx(model(codes, exists).item(), rel=1e-5)


def test_an_untrained_model_is_near_uniform() -> None:
    torch.manual_seed(0)
    settings = RQTransformerSettings(width=16, spatial_layers=2, heads=2, transformer_dropout=0.0)
    model = RQTransformer(settings, [torch.randn(size, 8) for size in SIZES]).eval()
    uniform = sum(map(math.log, SIZES))
    assert model(codes_of(8, 6), torch.ones(8, 6, dtype=torch.bool)).item() == pytest.approx(uniform, abs=0.1)


def test_drawn_codes_and_soft_targets_against_the_formula() -> None:
    quantizer = small_codec().quantizer
    latents = torch.randn(2, 3, 16)
    codes, targets = drawn_codes(quantizer, latents, 2.0, torch.Generator().manual_seed(0))
    left = latents[1, 2]
    for level, size in enumerate(quantizer.sizes):
        vectors = quantizer.book(level).vectors()
        gaps = torch.stack([(left - vector).square().sum() for vector in vectors])
        assert torch.allclose(targets[level][1, 2], (-gaps / 2.0).softmax(0), atol=1e-4)
        assert targets[level].shape == (2, 3, size)
        left = left - vectors[codes[1, 2, level]]
    sharp, _ = drawn_codes(quantizer, latents, 1e-4, torch.Generator().manual_seed(0))
    assert torch.equal(sharp, quantizer(latents.flatten(0, 1)).codes.view(2, 3, 2))


def test_a_saved_model_is_the_same_and_a_damaged_one_refused(tmp_path: Path) -> None:
    model, codes = model_of_codes(), codes_of(2, 3)
    model.save(tmp_path)
    assert torch.equal(RQTransformer.load(tmp_path).log_probs(codes), model.log_probs(codes))
    (tmp_path / "rq_transformer.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no whole model"):
        RQTransformer.load(tmp_path)

"""The residual quantizer: nearest codes, sums, moving averages by their formula, the start, dead codes, shared codebooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sidrec.codec.quantizer import ResidualQuantizer, averages_of_few, means
from sidrec.codec.settings import CodecQuantizerSettings
from sidrec.pipeline.errors import InputError


def quantizer_of(sizes: list[int], **settings) -> ResidualQuantizer:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(6, CodecQuantizerSettings(sizes, **settings), rows_per_step=20)
    for book in quantizer.codebooks:
        book.start(torch.randn_like(book.weight))
    return quantizer


@pytest.mark.parametrize("share", [False, True])
def test_every_level_takes_the_nearest_of_its_codes_to_what_is_left(share: bool) -> None:
    quantizer = quantizer_of([5, 5, 5], share_codebooks=share)
    latents = torch.randn(20, 6)
    made = quantizer(latents)
    for row in range(20):
        left = latents[row]
        for level in range(3):
            vectors = quantizer.book(level).vectors()
            gaps = [float((left - vector).square().sum()) for vector in vectors]
            assert int(made.codes[row, level]) == int(np.argmin(gaps))
            left = left - vectors[made.codes[row, level]]
    assert torch.allclose(made.vectors, quantizer.vectors_of(made.codes), atol=1e-5)
    assert len(quantizer.codebooks) == (1 if share else 3)


def test_bits_are_those_of_the_levels_sizes() -> None:
    assert quantizer_of([8, 4, 2]).bits == 6


def test_the_gradient_is_straight_through() -> None:
    latents = torch.randn(4, 6, requires_grad=True)
    made = quantizer_of([5, 5])(latents)
    weights = torch.randn(4, 6)
    (made.vectors * weights).sum().backward()
    assert torch.allclose(latents.grad, weights, atol=1e-6)


def test_the_commitment_is_the_mean_over_levels_of_the_squared_gap_and_moves_latents_alone() -> None:
    quantizer = quantizer_of([5, 5])
    latents = torch.randn(4, 6, requires_grad=True)
    made = quantizer(latents)
    first = quantizer.book(0).vectors()[made.codes[:, 0]]
    second = quantizer.book(1).vectors()[made.codes[:, 1]]
    gaps = [(latents - first).square().mean(), (latents - first - second).square().mean()]
    assert made.commitment.item() == pytest.approx(float(sum(gap.item() for gap in gaps) / 2), rel=1e-5)
    made.commitment.backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0


def test_codebooks_follow_their_formula_and_padding_does_not_count() -> None:
    quantizer = quantizer_of([3], threshold_ema_dead_code=0.0, ema_decay=0.9)
    book, latents = quantizer.book(0), torch.randn(20, 6)
    counts, sums = book.counts.clone(), book.sums.clone()
    exists = torch.arange(20) < 15
    made = quantizer(latents)
    quantizer.after_step(made, exists, 1, np.random.default_rng(0))
    codes = made.codes[:15, 0]
    for code in range(3):
        of_code = latents[:15][codes == code]
        assert torch.allclose(book.counts[code], 0.9 * counts[code] + 0.1 * len(of_code))
        assert torch.allclose(book.sums[code], 0.9 * sums[code] + 0.1 * of_code.sum(0), atol=1e-5)
    assert torch.allclose(book.weight, book.sums / book.counts[:, None], atol=1e-3)


def test_a_shared_codebook_sees_all_levels() -> None:
    quantizer = quantizer_of([3, 3], share_codebooks=True, threshold_ema_dead_code=0.0, ema_decay=0.0)
    latents = torch.randn(20, 6)
    made = quantizer(latents)
    quantizer.after_step(made, torch.ones(20, dtype=torch.bool), 1, np.random.default_rng(0))
    counts = torch.bincount(made.codes.flatten(), minlength=3).float()
    assert torch.equal(quantizer.book(0).counts, counts)


def test_a_dead_code_goes_on_from_the_mean_of_a_few_latents() -> None:
    quantizer = quantizer_of([4], threshold_ema_dead_code=0.5, reset_every=1, ema_decay=0.5)
    book, latents = quantizer.book(0), torch.randn(20, 6)
    with torch.no_grad():
        book.weight[3] = 100.0
    made = quantizer(latents)
    book.counts[3] = 0.0
    revived = quantizer.after_step(made, torch.ones(20, dtype=torch.bool), 1, np.random.default_rng(0))
    assert revived == 1
    assert book.weight[3].abs().max() < 5


def test_averages_of_few_are_means_of_rows() -> None:
    latents = torch.arange(12.0).view(6, 2)
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    places = again.integers(6, size=(6, 4))
    assert torch.allclose(averages_of_few(latents, rng), latents[torch.from_numpy(places)].mean(1))


def test_the_start_codes_most_of_what_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4, 6)) * 10
    fine = rng.standard_normal((3, 6))
    latents = torch.tensor(centres[rng.integers(4, size=400)] + fine[rng.integers(3, size=400)], dtype=torch.float32)
    quantizer = quantizer_of([4, 3])
    quantizer.start(latents, rng)
    left = latents - quantizer(latents).vectors
    assert left.square().sum() < 0.2 * (latents - latents.mean(0)).square().sum()


def test_means_of_fewer_vectors_than_codes_are_near_the_vectors() -> None:
    vectors = torch.randn(3, 6)
    places = means(vectors, 8, np.random.default_rng(0))
    assert places.shape == (8, 6)
    assert torch.cdist(places, vectors).amin(1).max() < 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {"codebook_sizes": [1]},
        {"codebook_sizes": []},
        {"codebook_sizes": [4, 8], "share_codebooks": True},
        {"ema_decay": 1.0},
    ],
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(InputError):
        CodecQuantizerSettings(**settings)

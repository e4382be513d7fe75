"""Dead codes: which they are, and where they move, against k-means in numpy in which the living codes stand still."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sidrec.tokenizer.autoencoders.autoencoder import RESET_ITERATIONS, Codebook
from sidrec.tokenizer.autoencoders.dead_codes import dead_codes, new_places
from sidrec.tokenizer.autoencoders.ema_codebook import EmaCodebook
from sidrec.tokenizer.quantizers import QUANTIZERS


def cloud(n: int = 60, seed: int = 0) -> torch.Tensor:
    """[n, 3] around six corners."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(3 * rng.standard_normal((6, 3))[rng.integers(0, 6, n)] + 0.2 * rng.standard_normal((n, 3)))


def by_hand(rows: np.ndarray, live: np.ndarray, places: np.ndarray, iterations: int) -> np.ndarray:
    for _ in range(iterations):
        books = np.concatenate([live, places])
        codes = ((rows[:, None] - books) ** 2).sum(2).argmin(1) - len(live)
        places = np.stack([rows[codes == k].mean(0) if (codes == k).any() else place for k, place in enumerate(places)])
    return places


@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_places_are_those_of_kmeans_with_the_living_codes_at_rest(iterations: int) -> None:
    rows = cloud()
    live = rows[:3] + 0.1
    places = new_places(rows, live, 4, np.random.default_rng(5), iterations)
    drawn = rows[np.random.default_rng(5).permutation(60)[:4]]
    np.testing.assert_allclose(places, by_hand(rows.numpy(), live.numpy(), drawn.numpy(), iterations), atol=1e-9)
    assert torch.equal(places, drawn) == (iterations == 0)


def test_kmeans_places_leave_less_error_than_drawn_residuals() -> None:
    rows = cloud(400)
    errors = {}
    for iterations in (0, RESET_ITERATIONS):
        places = new_places(rows, rows[:2], 5, np.random.default_rng(0), iterations)
        errors[iterations] = float(torch.cdist(rows, torch.cat([rows[:2], places])).min(1).values.square().mean())
    assert errors[RESET_ITERATIONS] < 0.8 * errors[0]


def test_no_dead_codes_and_no_living_ones() -> None:
    rows = cloud()
    assert new_places(rows, rows[:3], 0, np.random.default_rng(0), 10).shape == (0, 3)
    alone = new_places(rows, rows[:0], 1, np.random.default_rng(0), 10)
    torch.testing.assert_close(alone[0], rows.mean(0))


def test_the_first_codes_under_the_limit_are_dead_as_far_as_rows_go() -> None:
    counts = torch.tensor([0.0, 5.0, 1.0, 0.0, 2.0])
    assert dead_codes(counts, 2.0, 10).tolist() == [True, False, True, True, False]
    assert dead_codes(counts, 2.0, 2).tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("kind", ["gradient", "ema", "lora"])
def test_a_codebook_moves_its_dead_codes_there_and_no_other(kind: str) -> None:
    rows, start = cloud().float(), cloud(8, seed=1).float()
    if kind == "lora":
        book = QUANTIZERS["lora"](e_dim=3, rank=2, hidden_sizes=[4]).build([3], [8], 0).codebooks[0]  # type: ignore[attr-defined, call-arg]
        book.start(start)
        torch.nn.init.normal_(book.b_learnt, generator=torch.Generator().manual_seed(0))
    else:
        book = Codebook(start) if kind == "gradient" else EmaCodebook(start, 0.5, 60)
    for _ in range(9):
        book.observe(rows, torch.arange(60) % 6)  # 6 and 7 are never used
    before = book.vectors().detach().clone()
    assert book.revive(rows, 0.5, np.random.default_rng(3), 4) == 2
    after = book.vectors().detach()
    assert torch.equal(after[:6], before[:6])
    drawn = rows[np.random.default_rng(3).permutation(60)[:2]]
    wanted = by_hand(rows.numpy(), before[:6].numpy(), drawn.numpy(), 4)
    np.testing.assert_allclose(after[6:], wanted, atol=1e-5)

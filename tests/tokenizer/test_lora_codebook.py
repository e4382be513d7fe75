"""Low-rank codebooks: C = base + A B per source, what levels share and inherit, every penalty and its gradient, dead codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sidrec.tokenizer.autoencoders.lora_codebook import START, LoraCodebook
from sidrec.tokenizer.quantizers.lora import Lora

BLOCKS = [3, 2]
K, R, E = 12, 4, 5


def levels(n_levels: int = 3, seed: int = 0, spread: float = 0.0, **settings: Any) -> list[LoraCodebook]:
    """Codebooks in double precision; with `spread`, every number that is learnt is moved at random, so that none is 0."""
    torch.manual_seed(seed)
    books: list[LoraCodebook] = []
    for _ in range(n_levels):
        made = Lora(**{"rank": R, **settings})
        books.append(LoraCodebook(torch.randn(K, E), BLOCKS, made, books[-1] if books else None).double())
    with torch.no_grad():
        for book in books:
            for parameter in book.parameters():
                parameter += spread * torch.randn_like(parameter)
    return books


@pytest.mark.parametrize("switches", [{}, {"share_a": "all"}, {"inherit_levels": True}])
def test_at_the_start_codes_are_the_base(switches: dict[str, Any]) -> None:
    for book in levels(**switches):
        torch.testing.assert_close(book.vectors(), book.base, atol=0, rtol=0)
        assert 0.5 * START < float(book.a().detach().std()) < 1.5 * START
        assert book.shares().tolist() == [0, 0]


def test_codes_are_base_plus_low_rank_source_by_source() -> None:
    for book in levels(spread=0.3):
        a, b = book.a().detach().numpy(), book.b().detach().numpy()
        assert np.linalg.matrix_rank(book.vectors().detach().numpy() - book.base.detach().numpy(), tol=1e-9) == R
        for where in (slice(0, 3), slice(3, 5)):  # A is the same for both sources, B is not
            expected = book.base.detach().numpy()[:, where] + a @ b[:, where]
            np.testing.assert_allclose(book.vectors().detach().numpy()[:, where], expected, atol=1e-12)


def test_one_code_for_all_sources_is_the_nearest_on_the_fused_latent() -> None:
    (book,) = levels(1, spread=0.3)
    rows, vectors = torch.randn(40, E, dtype=torch.float64), book.vectors().detach()
    per_source = sum(
        torch.cdist(r, c).square() for r, c in zip(rows.split(BLOCKS, 1), vectors.split(BLOCKS, 1), strict=True)
    )
    assert torch.equal(per_source.argmin(1), torch.cdist(rows, vectors).argmin(1))


def test_a_is_shared_by_sources_or_by_levels_too() -> None:
    separate, shared = levels(spread=0.1), levels(spread=0.1, share_a="all")
    assert not torch.equal(separate[0].a(), separate[1].a())
    assert shared[0].a() is shared[1].a() is shared[2].a()
    assert [sum(name == "a_learnt" for name, _ in book.named_parameters()) for book in shared] == [1, 0, 0]
    sum(book.vectors().square().sum() for book in shared).backward()  # the one A learns from all levels
    expected = sum(2 * book.vectors() @ book.b().T for book in shared)
    torch.testing.assert_close(shared[0].a_learnt.grad, expected.detach())


def test_levels_inherit_a_and_b() -> None:
    books = levels(spread=0.2, inherit_levels=True)
    for level, book in enumerate(books):
        torch.testing.assert_close(book.a(), sum(before.a_learnt for before in books[: level + 1]))
        torch.testing.assert_close(book.b(), sum(before.b_learnt for before in books[: level + 1]))
    together = levels(spread=0.2, inherit_levels=True, share_a="all")
    assert together[2].a() is together[0].a_learnt
    torch.testing.assert_close(together[1].b(), together[0].b_learnt + together[1].b_learnt)


def written_penalty(book: LoraCodebook, level: int) -> torch.Tensor:
    """The docstring's formula by loops over entries, of the same parameters."""
    s = book.settings
    learnt = [book.b_learnt] + ([book.a_learnt] if s.share_a == "sources" or level == 0 else [])
    l2 = torch.zeros((), dtype=torch.float64)
    for matrix in learnt:
        total = sum(entry**2 for entry in matrix.flatten())
        l2 = l2 + (total if s.penalty_reduction == "sum" else total / matrix.numel())
    orthogonality = torch.zeros((), dtype=torch.float64)
    if len(learnt) == 2:
        for i in range(R):
            for j in range(R):
                off = (book.a()[:, i] * book.a()[:, j]).sum() - float(i == j)
                orthogonality = orthogonality + off**2 / (1 if s.penalty_reduction == "sum" else R * R)
    relative = torch.zeros((), dtype=torch.float64)
    for where in (slice(0, 3), slice(3, 5)):
        low_rank, base = (book.a() @ book.b())[:, where], book.base.detach()[:, where]
        share = (low_rank**2).sum() ** 0.5 / (base**2).sum() ** 0.5
        relative = relative + torch.maximum(share - s.relative_limit, torch.zeros_like(share)) / 2
    total = s.l2_weight * l2 + s.orthogonality_weight * orthogonality + s.relative_weight * relative
    return total * (s.layer0_multiplier if level == 0 else 1)


@pytest.mark.parametrize("share_a", ["sources", "all"])
@pytest.mark.parametrize("inherit_levels", [False, True])
@pytest.mark.parametrize(
    "weights",
    [
        {"l2_weight": 0.7},
        {"l2_weight": 0.7, "penalty_reduction": "sum"},
        {"l2_weight": 0.0, "orthogonality_weight": 0.3},
        {"l2_weight": 0.0, "orthogonality_weight": 0.3, "penalty_reduction": "sum"},
        {"l2_weight": 0.0, "relative_weight": 0.9, "relative_limit": 0.2},
        {"l2_weight": 0.5, "orthogonality_weight": 0.2, "relative_weight": 2.0, "layer0_multiplier": 3.0},
    ],
)
def test_penalties_and_their_gradients_equal_the_written_formula(
    share_a: str, inherit_levels: bool, weights: dict[str, Any]
) -> None:
    books = levels(spread=0.3, share_a=share_a, inherit_levels=inherit_levels, **weights)
    parameters = [parameter for book in books for parameter in book.parameters()]
    gradients = []
    values = []
    for penalty in (
        sum(book.penalty() for book in books),
        sum(written_penalty(book, level) for level, book in enumerate(books)),
    ):
        values.append(float(penalty.detach()))
        gradients.append(torch.autograd.grad(penalty, parameters, allow_unused=True, materialize_grads=True))
    assert values[0] == pytest.approx(values[1], rel=1e-10)
    assert values[0] > 0
    for gradient, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_the_relative_penalty_is_silent_below_its_limit() -> None:
    books = levels(spread=0.3, l2_weight=0.0, relative_weight=1.0, relative_limit=100.0)
    assert [float(book.penalty().detach()) for book in books] == [0, 0, 0]


def test_shares_are_ratios_of_norms_per_source() -> None:
    (book,) = levels(1, spread=0.3)
    low_rank = (book.a() @ book.b()).detach().numpy()
    base = book.base.detach().numpy()
    expected = [np.linalg.norm(low_rank[:, w]) / np.linalg.norm(base[:, w]) for w in (slice(0, 3), slice(3, 5))]
    np.testing.assert_allclose(book.shares().detach().numpy(), expected)


def test_dead_codes_move_to_residuals_and_the_others_stay() -> None:
    (book,) = levels(1, spread=0.3)
    before = book.vectors().detach().clone()
    rows = torch.randn(30, E, dtype=torch.float64)
    book.observe(rows, torch.arange(30) % 10)  # codes 10 and 11 are never used
    assert book.revive(rows, 0.05, np.random.default_rng(0)) == 2
    after = book.vectors().detach()
    torch.testing.assert_close(after[:10], before[:10], atol=0, rtol=0)
    nearest, which = torch.cdist(after[10:], rows).min(1)
    assert float(nearest.max()) < 1e-6
    assert which[0] != which[1]
    assert book.counts.tolist() == [0] * K


def test_the_code_before_has_no_say_at_the_start_and_gets_no_gradient() -> None:
    books = levels(2, condition_on_previous=True)
    assert "condition" not in dict(books[0].named_parameters())
    previous = torch.randn(6, E, dtype=torch.float64, requires_grad=True)
    codes = torch.arange(6)
    assert float(books[1].offset(previous, codes).abs().max()) == 0
    with torch.no_grad():
        books[1].condition.normal_()
    torch.testing.assert_close(books[1].offset(previous, codes)[3], books[1].condition @ previous[3])
    assert not torch.autograd.grad(books[1].offset(previous, codes).sum(), previous, allow_unused=True)[0]


def test_a_one_hot_code_before_is_a_row_of_a_table_and_a_mixture_one_of_its_rows() -> None:
    books = levels(2, condition_on_previous=True, condition_form="one_hot")
    table = books[1].condition
    assert table.shape == (K, E)
    assert not table.detach().any()
    with torch.no_grad():
        table.normal_()
    nothing = torch.full((4, E), torch.nan, dtype=torch.float64)  # vectors before do not count
    p = torch.tensor([3, 0, 11, 3])
    one_hot = torch.nn.functional.one_hot(p, K).double()
    torch.testing.assert_close(books[1].offset(nothing, p), one_hot @ table)
    mixtures = torch.rand(4, K, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(books[1].offset(nothing, mixtures), mixtures @ table)
    gradient = torch.autograd.grad(books[1].offset(nothing, mixtures).sum(), (table, mixtures), allow_unused=True)
    torch.testing.assert_close(gradient[0], mixtures.detach().sum(0)[:, None].expand(K, E))
    assert gradient[1] is None

"""Each loss against its written formula, and the drawn items against what may be drawn."""

import math

import pytest
import torch
from torch import Tensor

from sidrec.baselines.losses import PAD, bce_loss, draw_outside, popularity_proposal, sampled_softmax_loss, softmax_loss

N, DIM, POSITIONS = 9, 5, 7


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """hidden [7, 5], items [9, 5], targets [7]; double precision."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, DIM, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(N, DIM, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, items, torch.randint(0, N, (POSITIONS,), generator=generator)


def score(case: tuple[Tensor, Tensor, Tensor], position: int, item: int) -> float:
    hidden, items, _ = case
    return float((hidden[position] @ items[item]).detach())


def test_softmax_against_the_formula(case: tuple[Tensor, Tensor, Tensor]) -> None:
    targets = case[2].tolist()
    expected = [
        math.log(sum(math.exp(score(case, p, j)) for j in range(N))) - score(case, p, target)
        for p, target in enumerate(targets)
    ]
    assert float(softmax_loss(*case)) == pytest.approx(sum(expected) / POSITIONS, rel=1e-5)


def test_bce_against_the_formula(case: tuple[Tensor, Tensor, Tensor]) -> None:
    targets, negatives = case[2].tolist(), [(target + 3) % N for target in case[2].tolist()]

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = [
        -math.log(sigmoid(score(case, p, targets[p]))) - math.log(1 - sigmoid(score(case, p, negatives[p])))
        for p in range(POSITIONS)
    ]
    assert float(bce_loss(*case, torch.tensor(negatives))) == pytest.approx(sum(expected) / POSITIONS, rel=1e-5)


def test_sampled_softmax_against_the_formula(case: tuple[Tensor, Tensor, Tensor]) -> None:
    proposal = popularity_proposal(torch.arange(N))
    negatives = [3, 3, 0, 8, 5, case[2][0].item()]  # repeated, never seen in training, and the first position's target
    M, q = len(negatives), proposal.tolist()
    expected = []
    for p, target in enumerate(case[2].tolist()):
        drawn = sum(math.exp(score(case, p, j) - math.log(M * q[j])) for j in negatives if j != target)
        positive = score(case, p, target)
        expected.append(math.log(math.exp(positive) + drawn) - positive)
    loss = sampled_softmax_loss(*case, torch.tensor(negatives), proposal)
    assert float(loss) == pytest.approx(sum(expected) / POSITIONS, rel=1e-5)


def test_sampled_softmax_tends_to_the_full_one_with_its_gradient(case: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, items, _ = case
    proposal = popularity_proposal(torch.tensor([50, 0, 1, 1, 2, 3, 5, 8, 13]))
    torch.manual_seed(0)
    negatives = torch.multinomial(proposal, 200_000, replacement=True)
    full, sampled = softmax_loss(*case), sampled_softmax_loss(*case, negatives, proposal)
    assert float(sampled) == pytest.approx(float(full), abs=0.005)
    for exact, estimate in zip(
        torch.autograd.grad(full, (hidden, items)), torch.autograd.grad(sampled, (hidden, items)), strict=True
    ):
        assert torch.allclose(exact, estimate, atol=0.01)
    uniform = torch.full((N,), 1 / N)
    wrong = sampled_softmax_loss(*case, negatives, uniform)  # drawn by popularity, corrected as if drawn uniformly
    assert abs(float(wrong) - float(full)) > 0.04


def test_the_estimate_is_unbiased_with_few_negatives(case: tuple[Tensor, Tensor, Tensor]) -> None:
    # exp(loss + s⁺) - exp s⁺ is the sum over drawn items; its mean over draws is the sum over all others
    hidden, items, targets = (part[:1] if part is not case[1] else part for part in case)
    proposal = popularity_proposal(torch.arange(N))
    positive = math.exp(score(case, 0, int(targets[0])))
    torch.manual_seed(1)
    sums = []
    with torch.no_grad():
        for _ in range(6000):
            negatives = torch.multinomial(proposal, 4, replacement=True)
            loss = sampled_softmax_loss(hidden, items, targets, negatives, proposal)
            sums.append(math.exp(float(loss)) * positive - positive)
    expected = sum(math.exp(score(case, 0, j)) for j in range(N) if j != int(targets[0]))
    assert sum(sums) / len(sums) == pytest.approx(expected, rel=0.05)


def test_the_proposal_is_half_popularity_half_uniform() -> None:
    shares = popularity_proposal(torch.tensor([0, 3, 1]))
    assert shares.tolist() == pytest.approx([1 / 6, 3 / 8 + 1 / 6, 1 / 8 + 1 / 6])
    assert float(shares.sum()) == pytest.approx(1.0)


def test_drawn_items_are_uniform_over_those_outside_the_row() -> None:
    torch.manual_seed(2)
    rows = torch.tensor([[2, 5, 5, 0, PAD, PAD], [3, 3, 3, 3, 3, 3], [0, 1, 2, 3, 4, 5]]).repeat(500, 1)
    drawn = draw_outside(rows, 7)
    assert drawn.dtype == torch.int64
    for row, outside in enumerate(([1, 3, 4, 6], [0, 1, 2, 4, 5, 6], [6])):
        counts = torch.bincount(drawn[row::3].flatten(), minlength=7)
        assert counts.nonzero().flatten().tolist() == outside
        assert counts[outside].tolist() == pytest.approx([3000 / len(outside)] * len(outside), rel=0.15)


def test_a_row_with_the_whole_catalogue_gets_any_other_item() -> None:
    torch.manual_seed(3)
    rows = torch.tensor([[2, 0, 1, 1]]).repeat(300, 1)
    drawn = draw_outside(rows, 3)
    for column, item in enumerate([2, 0, 1, 1]):
        assert set(drawn[:, column].tolist()) == {0, 1, 2} - {item}

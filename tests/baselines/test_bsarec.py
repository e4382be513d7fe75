"""BSARec: the filter is the one of the formula, padding and company change nothing, every prefix is learnt from once, and it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_sasrec import N, cases, walks

from sidrec.baselines import scorer as scorer_module
from sidrec.baselines import sequence_model
from sidrec.baselines.bsarec import BsaBlock, BsaRec, BsaRecSettings, FrequencyFilter, PrefixSasRecSettings, prefixes
from sidrec.baselines.scorer import rank_cases
from sidrec.baselines.sequence_model import SequenceScorer, padded
from sidrec.data.metrics import recall_at

TINY = BsaRecSettings(dim=16, layers=1, dropout=0.1, window=8, learning_rate=1e-2, batch_size=64, epochs=2)


@pytest.mark.parametrize("cutoff", [1, 4, 5, 9])
def test_the_filter_passes_the_lowest_frequencies(cutoff: int) -> None:
    torch.manual_seed(0)
    part = FrequencyFilter(replace(TINY, cutoff=cutoff)).eval()
    hidden, length = torch.randn(3, 12, TINY.dim), 12
    times = torch.arange(length)
    low = torch.zeros_like(hidden)
    for frequency in range(cutoff // 2 + 1):  # by real sines and cosines, the constant once
        for wave in (torch.cos, torch.sin):
            basis = wave(2 * torch.pi * frequency * times / length)
            if float(basis.abs().sum()) > 1e-3:
                low += torch.einsum("t,s,bsd->btd", basis, basis, hidden) / float(basis @ basis)
    expected = part.norm(hidden + low + part.beta**2 * (hidden - low))
    assert torch.allclose(part(hidden), expected, atol=1e-4)


def test_a_block_is_the_papers_sum() -> None:
    torch.manual_seed(0)
    block = BsaBlock(replace(TINY, alpha=0.3)).eval()
    hidden = torch.randn(1, 5, TINY.dim)
    attends = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    query, key, value = block.query_key_value(hidden)[0].split(TINY.dim, dim=1)
    scores = (query @ key.T / TINY.dim**0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    attended = block.attention_norm(hidden[0] + block.out(scores.softmax(dim=1) @ value))
    mixed = 0.3 * block.filter(hidden)[0] + 0.7 * attended
    assert torch.allclose(block(hidden, attends)[0], block.network_norm(mixed + block.network(mixed)), atol=1e-5)


def test_the_newest_state_alone_is_that_of_all() -> None:
    torch.manual_seed(0)
    model = BsaRec(20, BsaRecSettings(dim=8, heads=2, window=6)).eval()
    sequences = torch.tensor([[-1, -1, 3, 4, 9, 1], [5, 5, 2, 0, 19, 7]])
    whole = model(sequences)
    assert torch.allclose(model(sequences, newest=1), whole[:, -1:], atol=1e-6)
    assert torch.allclose(model(sequences, newest=3), whole[:, -3:], atol=1e-6)


def test_a_window_is_padded_on_the_left_and_holds_the_newest_items() -> None:
    rows = padded([np.array([3, 1]), np.arange(10)], left_to=4)
    assert rows.tolist() == [[-1, -1, 3, 1], [6, 7, 8, 9]]


def test_scores_do_not_depend_on_the_company_and_use_the_newest_items() -> None:
    torch.manual_seed(0)
    scorer = SequenceScorer(BsaRec(N, TINY), [])
    histories = [np.arange(length) for length in (1, 20, 5, 8)]
    together = scorer.scores(histories)
    assert together.shape == (4, N)
    for row, history in zip(together, histories, strict=True):
        assert row == pytest.approx(scorer.scores([history])[0], abs=0.03)  # bfloat16 where the hardware has it
    assert together[1] == pytest.approx(scorer.scores([histories[1][-8:]])[0], abs=0.03)
    assert together[3] != pytest.approx(scorer.scores([histories[3][:-1]])[0], abs=0.03)


def test_padding_is_no_item() -> None:
    """What stands in for it may be any item."""
    torch.manual_seed(0)
    model = BsaRec(N, TINY).eval()
    before = model.last_states([np.array([5, 6])])
    with torch.no_grad():
        model.items.weight[0] += 1
    assert torch.equal(model.last_states([np.array([5, 6])]), before)


def test_every_prefix_is_a_case_once() -> None:
    sequences = [np.arange(length) for length in (1, 2, 5)]
    row, end = prefixes(sequences)
    assert list(zip(row.tolist(), end.tolist(), strict=True)) == [(1, 1), (2, 1), (2, 2), (2, 3), (2, 4)]


def test_it_learns_what_a_first_order_chain_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "recall_at", lambda ranks, k: recall_at(ranks, 1))
    settings = replace(TINY, dim=32, dropout=0.0, epochs=8, patience=8)
    scorer = sequence_model.train(walks(240, 1), cases(walks(60, 2)), N, settings, 0, 5.0, tmp_path / "bsarec.pt")
    assert recall_at(rank_cases(scorer, cases(walks(200, 3)), masked=False), 1).mean() > 0.8


def test_without_the_filter_it_is_a_transformer_with_its_norms_behind():
    settings = PrefixSasRecSettings(dim=8)
    block = BsaBlock(settings).eval()
    hidden, attends = torch.randn(2, 6, 8), torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    attended = block.attention_norm(hidden + block.out(block._attention(hidden, attends, slice(None))))
    wanted = block.network_norm(attended + block.network(attended))
    torch.testing.assert_close(block(hidden, attends), wanted)
    assert all(set(point) == set(settings.grid[0]) for point in settings.grid), (
        "a stage is named by the first point's settings"
    )

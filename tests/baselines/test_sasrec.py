"""SASRec learns a rule, reads no future, and an interrupted training ends like an uninterrupted one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sidrec.baselines import sasrec, sequence_model
from sidrec.baselines import scorer as scorer_module
from sidrec.baselines.sasrec import PAD, SasRec, SasRecSettings, batches, windows
from sidrec.baselines.scorer import rank_cases
from sidrec.baselines.sequence_model import SequenceScorer, TrainingState, padded
from sidrec.baselines.transformer_blocks import LigrBlock
from sidrec.data.dataset import EvalCases
from sidrec.data.metrics import recall_at

N = 30
TINY = SasRecSettings(
    dim=16, layers=1, heads=2, dropout=0.1, max_length=8, learning_rate=1e-2, batch_items=256, epochs=4
)


def walks(count: int, seed: int) -> list[np.ndarray]:
    """Walks round a ring of N - 2 items. The first item, N - 2 or N - 1, says whether in steps of 1 or of 9."""
    rng = np.random.default_rng(seed)
    sequences = []
    for fast in rng.integers(0, 2, count):
        steps = (9 if fast else 1) * np.arange(rng.integers(3, 8))
        sequences.append(np.concatenate([[N - 2 + fast], (rng.integers(N - 2) + steps) % (N - 2)]))
    return sequences


def cases(sequences: list[np.ndarray]) -> EvalCases:
    names = [str(i) for i in range(len(sequences))]
    return EvalCases(names, [walk[:-1] for walk in sequences], np.array([walk[-1] for walk in sequences]))


def train(folder: Path, settings: SasRecSettings = TINY, seed: int = 0, minutes: float = 5.0) -> SequenceScorer:
    return sequence_model.train(walks(240, 1), cases(walks(60, 2)), N, settings, seed, minutes, folder / "sasrec.pt")


@pytest.mark.parametrize(
    ("loss", "block", "epochs", "least"),
    [
        ("softmax", "sasrec", 14, 0.9),
        ("bce", "sasrec", 50, 0.65),
        ("sampled_softmax", "sasrec", 36, 0.65),
        ("sampled_softmax", "ligr", 24, 0.65),
    ],
)
def test_it_learns_what_a_first_order_chain_cannot(
    loss: str, block: str, epochs: int, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the last item alone does not say which step the walk takes: a first-order model is right half of the time
    monkeypatch.setattr(scorer_module, "recall_at", lambda ranks, k: recall_at(ranks, 1))  # Recall@10 is 1 too soon
    kind = {"loss": loss, "block": block, "negatives": 20}
    scorer = train(tmp_path, replace(TINY, dim=32, dropout=0.0, epochs=epochs, patience=epochs, **kind))
    assert recall_at(rank_cases(scorer, cases(walks(200, 3)), masked=False), 1).mean() > least


def test_interrupted_training_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_folder, broken_folder = tmp_path / "whole", tmp_path / "broken"
    whole_folder.mkdir()
    broken_folder.mkdir()
    whole = train(whole_folder)
    original, calls = sasrec.train_epoch, []

    def interrupt_in_the_third_epoch(*arguments: object) -> Iterator[float]:
        calls.append(1)
        for share in original(*arguments):
            yield share
            if len(calls) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(sasrec, "train_epoch", interrupt_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(broken_folder)
    assert len(torch.load(broken_folder / "sasrec.pt", weights_only=True)["valid_recall"]) == 2
    torch.manual_seed(99)  # the caller's random state must not matter
    again = train(broken_folder)
    assert len(calls) == 3 + TINY.epochs - 2
    assert again.valid_recall == whole.valid_recall
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    before = len(calls)
    train(broken_folder)  # finished: nothing left to train
    assert len(calls) == before


def test_seed_decides_and_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    results = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        (tmp_path / name).mkdir()
        model = train(tmp_path / name, replace(TINY, epochs=1), seed).model
        results.append(model.items.weight)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_ligr_block_is_two_gated_normalised_branches() -> None:
    torch.manual_seed(0)
    block = LigrBlock(6, 1, 0.0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
    hidden = torch.randn(1, 4, 6)
    mixed = block.query_key_value(block.attention_norm(hidden))[0]
    query, key, value = mixed[:, :6], mixed[:, 6:12], mixed[:, 12:]
    scores = (query @ key.T / 6**0.5).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    attended = block.attention_out(scores.softmax(dim=1) @ value)
    middle = hidden[0] + 1 / (1 + torch.exp(-block.attention_gate(hidden[0]))) * attended
    normed = block.network_norm(middle)
    switch, plain = normed @ block.up.weight[:24].T, normed @ block.up.weight[24:].T
    network = (switch / (1 + torch.exp(-switch)) * plain) @ block.down.weight.T
    expected = middle + 1 / (1 + torch.exp(-block.network_gate(middle))) * network
    assert torch.allclose(block(hidden)[0], expected, atol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "bce", "sampled_softmax"])
def test_training_is_fitted_on_the_given_sequences_alone(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valid decides which epoch is kept and nothing else: with other valid cases every epoch's weights are the same."""
    weights: dict[str, list[torch.Tensor]] = {"a": [], "b": []}

    def remember(training: TrainingState, path: Path) -> None:
        weights[path.parent.name].append(training.model.items.weight.detach().clone())

    monkeypatch.setattr(TrainingState, "save", remember)
    for name, seed in (("a", 2), ("b", 3)):
        settings = replace(TINY, loss=loss, epochs=2)
        sequence_model.train(walks(100, 1), cases(walks(60, seed)), N, settings, 0, 5.0, tmp_path / name / "x.pt")
    assert len(weights["a"]) == 2
    assert all(torch.equal(first, second) for first, second in zip(weights["a"], weights["b"], strict=True))


def test_no_drawn_negative_is_in_its_users_window(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def remember(
        hidden: torch.Tensor, items: torch.Tensor, targets: torch.Tensor, negatives: torch.Tensor
    ) -> torch.Tensor:
        seen.append((targets, negatives))
        return hidden.sum()

    monkeypatch.setattr(sasrec, "bce_loss", remember)
    model = SasRec(N, TINY)
    rows = padded(walks(60, 5))
    for _ in range(20):
        sasrec.batch_loss(model, rows, replace(TINY, loss="bce", max_length=8), torch.full((N,), 1 / N))
    lengths = (rows[:, 1:] != PAD).sum(dim=1)
    for targets, negatives in seen:
        for row, drawn in zip(rows, negatives.split(lengths.tolist()), strict=True):
            assert not torch.isin(drawn, row).any()
        assert targets.tolist() == rows[:, 1:][rows[:, 1:] != PAD].tolist()
    assert len({tuple(negatives.tolist()) for _, negatives in seen}) == 20, "drawn anew for each batch"


def test_a_training_that_the_clock_ended_says_so(tmp_path: Path) -> None:
    cut = train(tmp_path, minutes=1e-9)
    assert cut.cut_short
    whole = train(tmp_path)  # goes on from the same checkpoint
    assert len(whole.valid_recall) == TINY.epochs
    assert not whole.cut_short


def test_it_stops_by_patience_and_by_time_and_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "time").mkdir()
    assert len(train(tmp_path / "time", minutes=1e-9).valid_recall) == 1
    recalls = iter([0.1, 0.5, 0.3, 0.5, 0.2, 0.9])
    weights = []

    def recall(ranks: np.ndarray, k: int) -> np.ndarray:
        return np.array([next(recalls)])

    def remember(training: TrainingState, path: Path) -> None:
        weights.append(training.model.items.weight.detach().clone())

    monkeypatch.setattr(scorer_module, "recall_at", recall)
    monkeypatch.setattr(TrainingState, "save", remember)
    scorer = train(tmp_path, replace(TINY, epochs=6, patience=3))
    assert scorer.valid_recall == [0.1, 0.5, 0.3, 0.5, 0.2]
    assert torch.equal(scorer.model.items.weight, weights[1])


@pytest.mark.parametrize("block", ["sasrec", "ligr"])
def test_a_position_does_not_see_later_items_or_padding(block: str) -> None:
    torch.manual_seed(0)
    model = SasRec(N, replace(TINY, block=block)).eval()
    short, long = torch.tensor([[3, 1, 4, PAD, PAD]]), torch.tensor([[3, 1, 4, 15, 9]])
    assert torch.allclose(model(short)[:, :3], model(long)[:, :3], atol=1e-6)
    changed = torch.tensor([[3, 2, 4, 15, 9]])
    assert not torch.allclose(model(changed)[:, 2], model(long)[:, 2], atol=1e-4)


def test_scores_do_not_depend_on_the_company_and_use_the_newest_items() -> None:
    torch.manual_seed(0)
    scorer = SequenceScorer(SasRec(N, TINY), [])
    histories = [np.arange(length) for length in (1, 20, 5, 8)]
    together = scorer.scores(histories)
    assert together.shape == (4, N)
    assert together.dtype == np.float32
    for row, history in zip(together, histories, strict=True):
        assert row == pytest.approx(scorer.scores([history])[0], abs=0.02)  # bfloat16 where the hardware has it
    assert together[1] == pytest.approx(scorer.scores([histories[1][-TINY.max_length :]])[0], abs=0.02)


def test_every_item_but_the_first_is_a_target_once() -> None:
    rng = np.random.default_rng(0)
    sequences = [np.arange(length) for length in (1, 2, 8, 9, 10, 40)]
    for _ in range(20):
        pieces = windows(sequences, 8, rng)
        assert all(2 <= len(piece) <= 9 for piece in pieces)
        targets = np.sort(np.concatenate([piece[1:] for piece in pieces]))
        expected = np.sort(np.concatenate([sequence[1:] for sequence in sequences]))
        assert targets.tolist() == expected.tolist()


def test_batches_hold_every_window_once_within_their_size() -> None:
    sequences = walks(100, 4)
    epoch = batches(sequences, TINY, np.random.default_rng(0))
    for batch in epoch:
        rows = padded(batch)
        assert rows.shape[0] * (rows.shape[1] - 1) <= TINY.batch_items
    assert sum(len(piece) - 1 for batch in epoch for piece in batch) == sum(len(walk) - 1 for walk in sequences)
    assert len(epoch) > 1

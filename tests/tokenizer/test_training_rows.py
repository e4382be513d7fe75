"""Rows split over processes: what one process computes and what two do together are the same bytes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.kmeans import training_rows
from sidrec.tokenizer.kmeans.balanced_kmeans import codes_of_equal_size
from sidrec.tokenizer.kmeans.distributed import join_processes, leave_processes
from sidrec.tokenizer.kmeans.residual_kmeans import fit
from sidrec.tokenizer.kmeans.settings import KmeansSettings
from sidrec.tokenizer.kmeans.training_rows import DEALT, TrainingRows
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers import QUANTIZERS

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "plain": KmeansSettings(clusters="plain", lloyd_iterations=6),
    "relaxed": KmeansSettings(balanced_iterations=3, lloyd_iterations=4),
    "slack": KmeansSettings(clusters="balanced", slack=1.5, balanced_iterations=3),
    "exact": KmeansSettings(clusters="exact", balanced_iterations=2),
}


def vectors() -> np.ndarray:
    """[40000, 8]: blocks of 16,384 for both processes, the last one not whole; with many equal rows, so that codes get empty."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40_000, 8)).astype(np.float32)
    rows[:39_000] = rows[rng.integers(0, 40, 39_000)]
    return rows


def learn_all() -> dict[str, np.ndarray]:
    """Codebooks, prices and codes of every kind of clusters."""
    learnt = {}
    for name, settings in KINDS.items():
        books = fit(vectors(), [48, 16], 0, settings)
        learnt |= {f"{name}_book_{level}": book for level, book in enumerate(books.books)}
        learnt |= {f"{name}_prices_{level}": price for level, price in enumerate(books.prices)}
        kind = QUANTIZERS["rqkmeans"](clusters=settings.clusters)
        learnt[f"{name}_codes"] = kind.encode(Quantizer(books), vectors(), 0)
    return learnt


def write_what_was_learnt() -> None:
    """Run by torchrun: every process writes its own."""
    rank = join_processes("rqkmeans", shares_rows=True)
    torch.set_num_threads(1)
    np.savez(Path(sys.argv[1]) / f"{rank}.npz", **learn_all())
    leave_processes()


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(
        [*command, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    alone = learn_all()
    for rank in (0, 1):
        with np.load(tmp_path / f"{rank}.npz") as together:
            assert set(together.files) == set(alone)
            for name, array in alone.items():
                np.testing.assert_array_equal(together[name], array, err_msg=f"{name} in process {rank}")


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The first or second of two processes that never speak to each other."""
    monkeypatch.setattr(training_rows, "rank_and_processes", lambda: (rank, 2))


def test_blocks_are_dealt_in_turn_and_thinned_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = vectors()
    items = torch.arange(1000, 37_000)
    shares = []
    for rank in (0, 1):
        as_rank(monkeypatch, rank)
        shares.append(TrainingRows.read(rows, items))
    for share in shares:
        assert share.total == 36_000
        np.testing.assert_array_equal(share.values, rows[1000 + share.positions])
    assert shares[0].positions[: DEALT + 1].tolist() == [*range(DEALT), 2 * DEALT]
    both = torch.cat([share.positions for share in shares])
    assert both.sort().values.tolist() == list(range(36_000))
    thin = [share.thinned(4400) for share in shares]  # every eighth
    for share in thin:
        assert share.total == 4500
        np.testing.assert_array_equal(share.values, rows[1000 + 8 * share.positions])
    assert torch.cat([share.positions for share in thin]).sort().values.tolist() == list(range(4500))


def test_thinning_keeps_between_the_number_asked_for_and_twice_as_many() -> None:
    rows = TrainingRows.read(vectors(), torch.arange(7000))
    assert [rows.thinned(most).total for most in (10_000, 7000, 3501, 3500, 1750, 1)] == [
        7000,
        7000,
        7000,
        3500,
        1750,
        2,
    ]


def test_means_are_means_and_a_code_without_rows_takes_the_worst_fitting_row() -> None:
    values = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0], [10.0, 6.0], [10.0, 0.0]])
    rows = TrainingRows(values, torch.arange(5), 5)
    means = rows.means(torch.tensor([0, 0, 2, 2, 2]), torch.zeros(3, 2))
    assert means.tolist() == [[1.0, 0.0], [10.0, 6.0], [10.0, 2.0]]  # row 3 is 4 from its mean, the others 1 and 2


def test_exact_sizes_are_exact_and_nearly_the_cheapest() -> None:
    """Against the assignment problem, in which every code has one column per row that it must hold."""
    from scipy.optimize import linear_sum_assignment

    generator = torch.Generator().manual_seed(0)
    values, centroids = torch.randn(103, 4, generator=generator), 0.5 * torch.randn(8, 4, generator=generator)
    rows = TrainingRows(values, torch.arange(103), 103)
    squared = torch.cdist(values, centroids).square()
    codes = codes_of_equal_size(rows, squared)
    counts = torch.bincount(codes, minlength=8)
    assert sorted(counts.tolist()) == [12] + [13] * 7
    columns = torch.arange(8).repeat_interleave(counts)
    best = squared[:, columns][linear_sum_assignment(squared[:, columns].numpy())].sum()
    total = squared[torch.arange(103), codes].sum()
    assert float(best) <= float(total) * (1 + 1e-6)
    assert float(total) < 1.1 * float(best)


def test_other_quantizers_refuse_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes("rqvae", shares_rows=False) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="'rqvae' is learnt by one process, not by 2"):
        join_processes("rqvae", shares_rows=False)
    assert [name for name, kind in QUANTIZERS.items() if kind.shares_rows] == ["rqkmeans"]


if __name__ == "__main__":
    write_what_was_learnt()

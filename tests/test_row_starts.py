"""Where SID tokens' rows start from: each method against its formula, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sft.row_starts import codebook_rows


@pytest.mark.parametrize("dim", [5, 40])
def test_codebook_rows_keep_distances(dim):
    codebook = np.random.default_rng(0).normal(size=(12, dim)).astype(np.float32)
    rows = codebook_rows(codebook, hidden_size=32, seed=0)
    assert rows.shape == (12, 32)
    assert rows.norm(dim=1).mean().item() == pytest.approx(1.0, abs=1e-5)
    wanted = torch.cdist(torch.from_numpy(codebook), torch.from_numpy(codebook))
    ratio = torch.cdist(rows, rows)[wanted > 0] / wanted[wanted > 0]
    assert ratio.std() / ratio.mean() < 1e-3  # min(D, H) ≥ K - 1 here, so the lift is an isometry up to one scale


def test_codes_without_vectors_get_rows_of_their_own():
    """A dedup token's codebook is of zeros: its rows must differ, and be as long as any other level's."""
    rows = codebook_rows(np.zeros((5, 7), dtype=np.float32), hidden_size=32, seed=0)
    assert torch.isfinite(rows).all()
    assert rows.norm(dim=1).mean().item() == pytest.approx(1.0, abs=1e-5)
    assert torch.pdist(rows).min() > 0.5
    torch.testing.assert_close(rows, codebook_rows(np.full((5, 7), 3, dtype=np.float32), hidden_size=32, seed=0))
    assert not torch.allclose(rows, codebook_rows(np.zeros((5, 7), dtype=np.float32), hidden_size=32, seed=1))

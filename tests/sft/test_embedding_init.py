"""Where SID tokens' rows start from: each method against its formula, written out in numpy."""

from __future__ import annotations

import dataclasses
import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import make_sids
from run_dirs import assert_one_sentence, exit_code
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sidrec.decoding.policy import SidVocabulary
from sidrec.pipeline.errors import InputError
from sidrec.sft import train
from sidrec.sft.embedding_init import (
    codebook_rows,
    geometry_weight,
    initial_rows,
    mean_rows,
    text_rows,
    usable_init,
    word_shares,
)
from sidrec.sft.settings import EmbeddingInit
from sidrec.sft.vocabulary import add_sid_tokens
from sidrec.tokenizer.semantic_ids import SemanticIds

INITS = get_args(EmbeddingInit)
WORDS = ["red", "blue", "tea", "lamp", "boot", "drum"]
# item 7 has no text; code 3 of the first level and code 4 of the second have no item, code 2 of the second only item 7
TEXTS = ["red tea", "blue tea", "red lamp lamp", "blue boot", "drum", "red red boot", "tea", ""]
CODES = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2, 0], [0, 3], [2, 1], [1, 2]], dtype=np.int32)
WIDTH = 12


def word_sids() -> SemanticIds:
    rng = np.random.default_rng(3)
    return SemanticIds(CODES, CODES, [rng.normal(size=(size, 5)).astype(np.float32) for size in (4, 5)])


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, after `<pad>` and `<eos>`."""
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def word_model(tied: bool) -> Qwen3ForCausalLM:
    """Rows far from zero mean, an untied head's on another scale; two rows more than the tokenizer has tokens."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(WORDS) + 4,
            hidden_size=WIDTH,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=WIDTH,
            tie_word_embeddings=tied,
        )
    )
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0.5, 1)
        if not tied:
            model.get_output_embeddings().weight.normal_(-2, 3)
    return model


def started(embedding_init: str, tied: bool = True, seed: int = 0) -> tuple[Qwen3ForCausalLM, SidVocabulary]:
    model = word_model(tied)
    return model, add_sid_tokens(model, word_tokenizer(), word_sids(), TEXTS, embedding_init, seed)


def rows_at(weight: torch.Tensor, vocabulary: SidVocabulary, level: int) -> np.ndarray:
    first = vocabulary.first_tokens[level]
    return weight.detach()[first : first + vocabulary.level_sizes[level]].double().numpy()


def old_rows(tied: bool) -> list[np.ndarray]:
    """Of the embedding, and of an untied head, before SID tokens."""
    model = word_model(tied)
    matrices = [model.get_input_embeddings()] if tied else [model.get_input_embeddings(), model.get_output_embeddings()]
    return [matrix.weight.detach()[: len(WORDS) + 2].double().numpy() for matrix in matrices]


def matrices_of(model: Qwen3ForCausalLM, tied: bool) -> list[torch.Tensor]:
    both = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (both[0] is both[1]) == tied
    return both[:1] if tied else both


def expected_text(old: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """By hand, of mean norm 1: [K, H], and which codes have items with words."""
    ids = {word: i + 2 for i, word in enumerate(WORDS)}
    size = (4, 5)[level]
    means = np.full((size, WIDTH), np.nan)
    for code in range(size):
        texts = [text.split() for text, c in zip(TEXTS, CODES[:, level], strict=True) if c == code and text]
        item_means = [np.mean([old[ids[word]] for word in words], axis=0) for words in texts]
        if item_means:
            means[code] = np.mean(item_means, axis=0)
    used = ~np.isnan(means[:, 0])
    means -= means[used].mean(axis=0)
    return means / np.linalg.norm(means[used], axis=1).mean(), used


@pytest.mark.parametrize("tied", [True, False])
def test_codebook(tied: bool) -> None:
    """Distances between codes up to one scale, mean norm that of the old rows' median."""
    model, vocabulary = started("codebook", tied)
    for old, weight in zip(old_rows(tied), matrices_of(model, tied), strict=True):
        for level, codebook in enumerate(word_sids().codebooks):
            rows = rows_at(weight, vocabulary, level)
            centred = codebook.astype(float) - codebook.astype(float).mean(axis=0)
            median = np.sort(np.linalg.norm(old, axis=1))[(len(old) - 1) // 2]  # the lower one, as torch has it
            scale = median / np.linalg.norm(centred, axis=1).mean()
            np.testing.assert_allclose(rows @ rows.T, scale**2 * centred @ centred.T, rtol=1e-4, atol=1e-4 * median**2)


def test_levels_lie_in_unrelated_directions() -> None:
    book = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    one, two = codebook_rows(book, 256, seed=0), codebook_rows(book, 256, seed=1)
    cosines = torch.nn.functional.cosine_similarity(one, two)
    assert cosines.abs().max() < 0.35
    assert not torch.equal(one, two)


@pytest.mark.parametrize("tied", [True, False])
def test_text(tied: bool) -> None:
    model, vocabulary = started("text", tied)
    for old, weight in zip(old_rows(tied), matrices_of(model, tied), strict=True):
        median = np.sort(np.linalg.norm(old, axis=1))[(len(old) - 1) // 2]
        for level in range(2):
            rows, (expected, used) = rows_at(weight, vocabulary, level), expected_text(old, level)
            assert used.tolist() == ([True, True, True, False], [True, True, False, True, False])[level]
            np.testing.assert_allclose(rows[used], median * expected[used], rtol=1e-5, atol=1e-5)
            geometry = codebook_rows(word_sids().codebooks[level], WIDTH, seed=level).numpy()
            np.testing.assert_allclose(rows[~used], median * geometry[~used], rtol=1e-5, atol=1e-5)


def test_text_of_a_level_without_code_vectors_leaves_unused_codes_near_the_mean() -> None:
    """Which is 0: a dedup token's code vectors are all the same."""
    sids = word_sids()
    flat = SemanticIds(sids.codes, sids.codes, [np.zeros_like(book) for book in sids.codebooks])
    old, shares = torch.randn(len(word_tokenizer()), WIDTH), word_shares(TEXTS, word_tokenizer())
    for level, rows in enumerate(initial_rows(old, flat, shares, "text", seed=0)):
        unused = ~np.isin(np.arange(len(rows)), sids.codes[[bool(text) for text in TEXTS], level])
        assert unused.any()
        norms = rows.norm(dim=1)[torch.from_numpy(unused)] / old.norm(dim=1).median()
        assert ((norms > 0) & (norms < 0.03)).all()


@pytest.mark.parametrize("tied", [True, False])
def test_codebook_and_text(tied: bool) -> None:
    model, vocabulary = started("codebook+text", tied)
    for old, weight in zip(old_rows(tied), matrices_of(model, tied), strict=True):
        mean = old.mean(axis=0)
        around = np.sort(np.linalg.norm(old - mean, axis=1))[(len(old) - 1) // 2]
        for level, codebook in enumerate(word_sids().codebooks):
            rows, (text, used) = rows_at(weight, vocabulary, level), expected_text(old, level)
            geometry = codebook_rows(codebook, WIDTH, seed=level).double().numpy()
            share = geometry_weight(level)
            mixed = np.stack(
                [(1 - share) * t + share * g if u else g for t, g, u in zip(text, geometry, used, strict=True)]
            )
            expected = mean + around * mixed / np.linalg.norm(mixed, axis=1).mean()
            np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-5)
            assert np.linalg.norm(rows - mean, axis=1).mean() == pytest.approx(around, rel=1e-5)


def test_geometry_weighs_more_on_early_levels() -> None:
    weights = [geometry_weight(level) for level in range(8)]
    assert all(0 < later < earlier < 1 for earlier, later in itertools.pairwise(weights))


@pytest.mark.parametrize("tied", [True, False])
def test_mean(tied: bool) -> None:
    model, vocabulary = started("mean", tied)
    for old, weight in zip(old_rows(tied), matrices_of(model, tied), strict=True):
        rows = np.concatenate([rows_at(weight, vocabulary, level) for level in range(2)])
        np.testing.assert_allclose(rows, np.broadcast_to(old.mean(axis=0), rows.shape), atol=1e-3)
        assert (np.std(rows, axis=0) > 0).all()


def test_the_draw_around_the_mean_has_the_old_rows_covariance() -> None:
    old = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 100.0])
    old[:, 1] += old[:, 2] / 20
    (rows,) = mean_rows(old, [40_000], seed=0)
    covariance = np.cov((rows.double() - old.double().mean(0)).numpy().T)
    wanted = 1e-9 * np.cov(old.double().numpy().T, bias=True)
    lengths = np.sqrt(np.diag(wanted))
    # rounding of float32 about the mean adds to the smallest
    np.testing.assert_allclose(covariance / np.outer(lengths, lengths), wanted / np.outer(lengths, lengths), atol=0.03)


@pytest.mark.parametrize("embedding_init", INITS)
@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_stay_new_ones_are_finite_and_the_same_twice(embedding_init: str, tied: bool) -> None:
    model, vocabulary = started(embedding_init, tied)
    again, _ = started(embedding_init, tied)
    other, _ = started(embedding_init, tied, seed=1)
    for old, weight, same, different in zip(
        old_rows(tied), *(matrices_of(m, tied) for m in (model, again, other)), strict=True
    ):
        assert np.array_equal(weight.detach()[: len(old)].double().numpy(), old)
        assert torch.isfinite(weight).all()
        for level in range(2):
            rows = rows_at(weight, vocabulary, level)
            assert rows.tobytes() == rows_at(same, vocabulary, level).tobytes()
            assert (rows != rows_at(different, vocabulary, level)).any()
            assert len(np.unique(rows, axis=0)) == len(rows)


def test_the_embedding_and_an_untied_head_differ() -> None:
    for embedding_init in ("text", "codebook+text"):
        model, vocabulary = started(embedding_init, tied=False)
        table, head = (rows_at(weight, vocabulary, 0)[:3] for weight in matrices_of(model, False))
        cosines = (table * head).sum(1) / np.linalg.norm(table, axis=1) / np.linalg.norm(head, axis=1)
        assert (cosines < 0.95).all()


def test_a_dedup_tokens_codes_take_nothing_from_texts() -> None:
    sids = word_sids()
    flat = dataclasses.replace(sids, codebooks=[sids.codebooks[0], np.full((5, 5), 0.1, dtype=np.float32)])
    model = word_model(True)
    vocabulary = add_sid_tokens(model, word_tokenizer(), flat, TEXTS, "codebook+text", seed=0)
    (old,), weight = old_rows(True), model.get_input_embeddings().weight
    rows = rows_at(weight, vocabulary, 1) - old.mean(axis=0)
    directions = codebook_rows(np.zeros((5, 5), dtype=np.float32), WIDTH, seed=1).double().numpy()
    around = np.sort(np.linalg.norm(old - old.mean(axis=0), axis=1))[(len(old) - 1) // 2]
    np.testing.assert_allclose(rows, around * directions, atol=1e-5)


def test_words_shares() -> None:
    shares = word_shares(TEXTS, word_tokenizer()).toarray()
    assert shares.shape == (8, len(WORDS) + 2)
    np.testing.assert_allclose(shares.sum(1), [1, 1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(shares[2], [0, 0, 1 / 3, 0, 0, 2 / 3, 0, 0])
    with pytest.raises(InputError, match="no item has a text"):
        word_shares(["", " "], word_tokenizer())


def test_one_code_in_use_has_nothing_that_tells_it_from_others() -> None:
    old = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0))
    rows, used = text_rows(old, word_shares(TEXTS, word_tokenizer()), np.zeros(8, dtype=np.int32), level_size=2)
    assert used.tolist() == [True, False]
    assert rows.abs().max() < 1e-3


def test_a_byte_model_takes_texts_too(tiny_model) -> None:
    """Whatever its rows mean: finite, different rows."""
    model, tokenizer = tiny_model
    sids = make_sids(20, [4, 6])
    texts = [f"The item {i}, №{i * i}" for i in range(20)]
    vocabulary = add_sid_tokens(model, tokenizer, sids, texts, "codebook+text", seed=0)
    rows = rows_at(model.get_input_embeddings().weight, vocabulary, 1)
    assert np.isfinite(rows).all()
    assert len(np.unique(rows, axis=0)) == 6


def test_from_scratch_the_default_is_the_codebook() -> None:
    assert [usable_init(name, from_scratch=True) for name in INITS] == ["codebook", "text", "codebook", "mean"]
    assert [usable_init(name, from_scratch=False) for name in INITS] == list(INITS)


def test_an_unknown_method_is_one_sentence(tmp_path, capfd) -> None:
    with pytest.raises(InputError, match="embedding_init is 'words'; it must be one of `codebook`, `text`"):
        train.main(["--run_dir", str(tmp_path), "--embedding_init", "words"])
    assert exit_code("sft/train.py", "--run_dir", tmp_path, "--embedding_init", "words") == 2
    assert_one_sentence(capfd.readouterr().err)
    config = tmp_path / "x.yaml"
    config.write_text("embedding_init: words\n")
    assert exit_code("sft/train.py", "--config", config) == 2
    assert_one_sentence(capfd.readouterr().err)


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

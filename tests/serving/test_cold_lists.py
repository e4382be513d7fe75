"""Cold items in lists: ranked by their texts, moved by one bias, and by flags of the command."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from run_dirs import RQ_FLAGS, assert_one_sentence, exit_code
from test_bundle_catalogue import NEW, call, shop_run

from sidrec import Recommender
from sidrec.decoding.rq_transformer.model import rq_transformer_of
from sidrec.pipeline.errors import InputError
from sidrec.serving import add_items
from sidrec.serving.answer import Question, answer
from sidrec.serving.bundle import Bundle
from sidrec.serving.cold_lists import calibrated_bias
from sidrec.serving.cold_rows import ColdRows
from sidrec.tokenizer.embeddings.ridge import Ridge

RECOMMEND = "serving/recommend.py"
HISTORIES = [np.array([0, 1, 2]), np.array([59, 3]), np.array([17])]
K = 8


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle has items that came later, too."""
    folder = tmp_path_factory.mktemp("cold")
    run = shop_run(folder, "own_token", **RQ_FLAGS)
    (folder / "new.csv").write_text(NEW)
    call(add_items.main, folder / "new.csv", "--bundle", run / "bundle")
    return run


@pytest.fixture(scope="module")
def bundle(run_dir: Path) -> Bundle:
    return Bundle.load(run_dir / "bundle")


def all_scores(bundle: Bundle, bias: float) -> np.ndarray:
    """float32 [B, N]: by item, log π with the bias; cold items by the model in which they have their texts' embeddings."""
    items = bundle.trie.item_of_leaf[:].numpy()
    scores = np.full((len(HISTORIES), len(bundle.items)), -np.inf, dtype=np.float32)
    for row, history in enumerate(HISTORIES):
        plain, cold = (asked.leaf_log_probs([history])[0].numpy() for asked in (bundle.of_one_model, bundle.of_cold))
        scores[row, items] = np.where(bundle.is_cold[items], cold + np.float32(bias), plain)
    return scores


def test_cold_items_have_the_embeddings_that_their_texts_say(bundle: Bundle, run_dir: Path) -> None:
    model, given = (rq_transformer_of(asked.model) for asked in (bundle.of_one_model, bundle.of_cold))
    assert model is not None
    assert given is not None
    texts, counts = np.load(run_dir / "embeddings" / "text.npy"), bundle.training_counts
    table = model.table()
    rows = table.item_rows[model.trie.leaf_of_item(torch.arange(62))].detach().numpy()
    is_warm = counts[:62] > 0
    ridge = Ridge.fit(texts[is_warm], rows[is_warm])
    new_table = given.table(bundle.trie)
    leaves = bundle.trie.leaf_of_item(torch.arange(len(bundle.items)))
    new_rows, new_bias = new_table.item_rows[leaves].detach().numpy(), new_table.item_bias[leaves].detach().numpy()
    np.testing.assert_allclose(new_rows[:62][~is_warm], ridge.predict(texts[~is_warm]), atol=1e-5)
    np.testing.assert_allclose(new_rows[:62][is_warm], rows[is_warm], atol=1e-6)
    assert np.ptp(new_bias[bundle.is_cold]) < 1e-5
    assert np.isfinite(new_rows[62:]).all()  # items that came later
    assert np.ptp(new_rows[62:64], axis=0).any()
    again = model.table(bundle.trie).item_rows  # the plain model is as before
    np.testing.assert_array_equal(again[leaves[:62]].detach().numpy(), rows)


@pytest.mark.parametrize("diversity", [None, 1])
@pytest.mark.parametrize("bias", [-2.0, 1.0, 40.0])
def test_lists_with_a_bias_are_those_of_brute_force(bundle: Bundle, bias: float, diversity: int | None) -> None:
    allowed = np.arange(len(bundle.items)) != 63
    scores, first_codes = all_scores(bundle, bias), bundle.sids.codes[:, 0]
    rows = answer(bundle, HISTORIES, Question(K, allowed=allowed, diversity=diversity, cold_bias=bias), ["a", "b", "c"])
    for row, (user, history) in enumerate(zip("abc", HISTORIES, strict=True)):
        expected: list[int] = []
        for item in np.argsort(-scores[row], kind="stable"):
            full = diversity is not None and (first_codes[expected] == first_codes[item]).sum() >= diversity
            if allowed[item] and item not in history and not full and len(expected) < K:
                expected.append(int(item))
        listed = rows.filter(pl.col("user_id") == user)
        assert listed["item_id"].to_list() == bundle.items["item_id"].gather(expected).to_list()
        unbiased = scores[row, expected] - np.float32(bias) * bundle.is_cold[expected]
        np.testing.assert_allclose(listed["score"].to_numpy(), unbiased, atol=1e-4)


def test_steps_ahead_take_the_bias_too(bundle: Bundle) -> None:
    rows = answer(bundle, HISTORIES[:1], Question(2, ahead=True, cold_bias=50.0))
    assert rows["cold"].to_list() == [True, True]


def test_a_share_is_that_of_the_lists(bundle: Bundle) -> None:
    histories = [np.array([item]) for item in range(40)]
    bias = calibrated_bias(bundle, histories, K, 0.1)
    rows = answer(bundle, histories, Question(K, cold_bias=bias))
    assert rows["cold"].sum() == 32
    with pytest.raises(InputError, match="name one with --log"):
        calibrated_bias(bundle, [], K, 0.1)
    everything_was_taken = replace(bundle, training_counts=np.ones(len(bundle.items), dtype=np.int64))
    with pytest.raises(InputError, match="keep_untaken_items true"):
        calibrated_bias(everything_was_taken, histories, K, 0.1)


def test_flags_of_the_command_and_python(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--run_dir", run_dir, "--all_users", "--k", "4", "--output", tmp_path / "lists.csv"]
    assert exit_code(RECOMMEND, *asked, "--cold_share", "0.2") == 0
    lists = pl.read_csv(tmp_path / "lists.csv")
    assert lists["cold"].sum() == round(0.2 * len(lists))
    said = capsys.readouterr().out
    bias = said.split("--cold_bias ")[1].split()[0]
    recommender = Recommender.load(run_dir)
    assert recommender.cold_bias(0.2, k=4) == pytest.approx(float(bias), abs=1e-4)
    table = recommender.recommend(
        users=lists["user_id"].unique(maintain_order=True).to_list(), k=4, cold_bias=float(bias)
    )
    assert table["item_id"].to_list() == lists["item_id"].to_list()
    for words, message in (
        (["--cold_share", "0.2", "--cold_bias", "1"], "one of the two"),
        (["--cold_share", "2"], "is no share"),
        (["--cold_bias", "nan"], "is no number"),
    ):
        assert exit_code(RECOMMEND, *asked, *words) == 2
        error = capsys.readouterr().err
        assert_one_sentence(error)
        assert message in error


def test_a_bundle_carries_the_map_and_a_damaged_one_is_a_sentence(run_dir: Path, tmp_path: Path) -> None:
    of_run = Bundle.of_run(run_dir, "sft", Recommender.load(run_dir)._source.dataset)  # type: ignore[arg-type]
    saved = ColdRows.load(run_dir / "bundle")
    assert saved is not None
    assert of_run.cold_rows is not None
    assert np.array_equal(saved.weights, of_run.cold_rows.weights)
    assert ColdRows.load(tmp_path) is None
    shutil.copy(run_dir / "bundle" / "training_counts.npy", tmp_path / "cold_rows.safetensors")
    with pytest.raises(InputError, match="is damaged"):
        ColdRows.load(tmp_path)

"""A pretrained decoder with one position an item: exact against itself by other roads, what training moves, and through every stage."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_dirs import logged, make_run_dir, run_stage, save_pretrained, state, weights
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from sidrec.data.dataset import Dataset
from sidrec.decoding.catalogue import LiveCatalogue
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM
from sidrec.decoding.rq_transformer.pretrained_decoder import PretrainedDecoder
from sidrec.evaluation import evaluate
from sidrec.pipeline.errors import InputError
from sidrec.rl import grpo
from sidrec.serving import recommend
from sidrec.serving.onnx_graph import write_onnx
from sidrec.sft import train
from sidrec.sft.examples import chat_openings
from sidrec.sft.fine_tuning import start_model
from sidrec.sft.settings import BackboneConfig, SftConfig
from sidrec.tokenizer.semantic_ids import SemanticIds

OPENING = "word3 word7"
FLAGS: dict[str, Any] = {"layout": "one_position", "opening": OPENING, "learning_rate": 0.01, "batch_items": 256}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return make_run_dir(tmp_path_factory.mktemp("one_position") / "run")


@pytest.fixture(scope="module", params=["Llama", "Qwen3"])
def pretrained(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / request.param
    save_pretrained(folder, request.param, tied=request.param == "Qwen3")
    return folder


@pytest.fixture(scope="module")
def untrained(run_dir, pretrained) -> tuple[RqTransformerForCausalLM, Renderer, SemanticIds]:
    return start(run_dir, pretrained)


@pytest.fixture(scope="module")
def moved(untrained) -> tuple[RqTransformerForCausalLM, Renderer]:
    """With weights that are anything but small."""
    model, renderer, _ = untrained
    model = clone_of(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
        for vector in (model.spatial.scale, model.spatial.centre, model.spatial.smoothing.scale):
            vector.normal_(std=0.3)
    return model.eval(), renderer


def start(run_dir: Path, pretrained: Path, **settings: Any) -> tuple[RqTransformerForCausalLM, Renderer, SemanticIds]:
    backbone = BackboneConfig(
        model_name_or_path=str(pretrained), **{"layout": "one_position", "opening": OPENING, **settings}
    )
    sids = SemanticIds.load(run_dir)
    model, _, vocabulary = start_model(Dataset.load(run_dir), sids, SftConfig(run_dir=run_dir), backbone, seed=0)
    assert isinstance(model, RqTransformerForCausalLM)
    return model.eval(), Renderer.build(sids, vocabulary, 10), sids


def clone_of(model: RqTransformerForCausalLM) -> RqTransformerForCausalLM:
    clone = RqTransformerForCausalLM(model.config)
    clone.load_state_dict(model.state_dict())
    return clone


def test_states_are_those_of_the_pretrained_model_after_the_opening_and_the_items(untrained, pretrained) -> None:
    model, renderer, _ = untrained
    whole, tokenizer = AutoModelForCausalLM.from_pretrained(pretrained), AutoTokenizer.from_pretrained(pretrained)
    history = np.array([3, 17, 40])
    rows = model.table().item_rows[model.trie.leaf_of_item(torch.from_numpy(history))]
    opening = whole.get_input_embeddings()(torch.tensor(tokenizer(OPENING)["input_ids"]))
    with torch.no_grad():
        expected = whole.base_model(inputs_embeds=torch.cat([opening, rows])[None]).last_hidden_state[0, 2:]
        expected = model.spatial.scale * expected + model.spatial.smoothing(rows[None])[0] - model.spatial.centre
        hidden = model(input_ids=renderer.tokens(history)[None], output_hidden_states=True).hidden_states[-1]
    assert hidden[0, 0].abs().max() == 0, "before any item the biases decide"
    torch.testing.assert_close(hidden[0, [3, 6, 9]], expected, atol=1e-4, rtol=1e-4)


def test_flat_logits_are_the_leaf_log_probs_and_neither_the_future_nor_padding_counts(moved) -> None:
    model, renderer = moved
    history, target = np.array([3, 17, 3, 9]), 21
    ids = torch.cat([renderer.tokens(history), renderer.tokens_of(torch.tensor([target]))[0]])[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        at = torch.arange(12, 15)
        forced = logits.log_softmax(-1)[0, at, ids[0, at + 1]].sum()
        fast = model.leaf_log_probs(ids[:, :13], torch.ones(1, 13).long(), model.trie)
        torch.testing.assert_close(forced, fast[0, model.trie.leaf_of_item(torch.tensor(target))], atol=1e-4, rtol=0)
        assert float(fast.exp().sum()) == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(model(input_ids=ids[:, :8]).logits, logits[:, :8], atol=1e-4, rtol=1e-5)
        histories = [history, history[-2:], np.array([5])]
        padded, mask = renderer.batch(histories)
        together = model(input_ids=padded, attention_mask=mask).logits[:, -1]
        alone = torch.stack([model(input_ids=renderer.tokens(h)[None]).logits[0, -1] for h in histories])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
        last = model.last_states(padded, mask)
        every = model(input_ids=padded, attention_mask=mask, output_hidden_states=True).hidden_states[-1][:, -1]
        torch.testing.assert_close(last, every, atol=1e-4, rtol=1e-4)


def test_losses_are_log_pi_of_every_answer(moved) -> None:
    model, renderer = moved
    history = np.array([3, 17, 8, 9])
    ids = renderer.tokens(history)[None]
    answers = torch.full_like(ids, -1)
    answers[0, 1::3] = torch.from_numpy(history)
    pad = nn.functional.pad
    with torch.no_grad():
        losses = model(input_ids=pad(ids, (0, 6)), answers=pad(answers, (0, 6), value=-1)).answer_losses
        assert len(losses) == 3
        for place, item in enumerate(history[1:], 1):
            prompt = ids[:, : 1 + 3 * place]
            log_probs = model.leaf_log_probs(prompt, torch.ones_like(prompt), model.trie)
            leaf = model.trie.leaf_of_item(torch.tensor(item))
            torch.testing.assert_close(-losses[place - 1], log_probs[0, leaf], atol=1e-4, rtol=1e-5)


def test_wide_beams_find_what_scoring_every_item_finds(moved, run_dir, monkeypatch) -> None:
    model, renderer = moved
    monkeypatch.setattr("sidrec.decoding.recommender.MOST_SCORED", 0)
    recommender = Recommender(model, renderer, LiveCatalogue(model.trie))
    histories, n_items = [np.array([1, 2, 8]), np.array([5])], model.trie.n_items
    exact = recommender.recommend(histories, 12, exclude_seen=True, exact=True)
    wide = recommender.recommend(histories, 12, exclude_seen=True, beams=n_items)
    assert wide.items.tolist() == exact.items.tolist()
    assert np.allclose(wide.log_probs, exact.log_probs, atol=1e-4)


def test_saved_and_loaded_it_is_the_same_and_keeps_its_opening(moved, tmp_path: Path) -> None:
    model, renderer = moved
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded.spatial, PretrainedDecoder)
    assert loaded.config.opening == model.config.opening != []
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not any("decoder.embed_tokens" in name for name in loaded.state_dict()), "words have one table"
    ids = renderer.tokens(np.array([2, 30]))[None]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("smoothing", [True, False])
def test_it_starts_near_popularity_with_items_where_words_are(run_dir, pretrained, smoothing: bool) -> None:
    model, renderer, sids = start(run_dir, pretrained, smoothing=smoothing)
    dataset = Dataset.load(run_dir)
    words = AutoModelForCausalLM.from_pretrained(pretrained).get_input_embeddings().weight.detach()
    items = model.table().item_rows.detach()
    distance = (words - words.mean(0)).norm(dim=1).median()
    assert float((items - words.mean(0)).norm(dim=1).median() / distance) == pytest.approx(1, abs=0.3)
    assert torch.equal(model.embed_tokens.weight[: len(words)], words)
    recommender = Recommender.build(model, renderer, sids)
    cases = dataset.cases("valid")
    loss = -recommender.log_probs_of(cases.histories, cases.targets).mean()
    assert loss < 1.1 * np.log(sids.n_items)
    counts = np.bincount(np.concatenate(dataset.train_sequences), minlength=sids.n_items)
    biases = model.table().item_bias[model.trie.leaf_of_item(torch.arange(sids.n_items))]
    wanted = np.log((counts + counts[counts > 0].min()) / (counts + counts[counts > 0].min()).sum())
    assert np.allclose(biases.detach(), wanted, atol=1e-4)


@pytest.fixture(scope="module")
def trainer(run_dir, pretrained):
    return run_stage(train, run_dir, model_name_or_path=pretrained, overwrite="true", **FLAGS)


def test_training_moves_the_decoder_the_items_and_the_opening_and_no_other_word(run_dir, trainer, untrained) -> None:
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    before, after = untrained[0].state_dict(), state(trainer.model)
    for name in before:
        assert torch.equal(before[name], after[name]) == (name in ("codes", "popularity")), name
    moved = (before["embed_tokens.weight"] != after["embed_tokens.weight"]).any(1).nonzero()[:, 0].tolist()
    config = trainer.model.config
    used = {
        first + code
        for first, codes in zip(config.first_tokens, trainer.model.codes.T, strict=True)
        for code in codes.tolist()
    }
    assert set(moved) == set(config.opening) | used


def test_it_is_evaluated_recommends_and_is_practised(run_dir, trainer, pretrained, monkeypatch, capsys) -> None:
    best = max(json.loads((run_dir / "sft" / "valid.json").read_text()), key=lambda row: row["eval_recall@10"])
    cases = Dataset.load(run_dir).cases("valid")
    lists = Recommender.load(run_dir, "sft").recommend(cases.histories, 10, exclude_seen=True).items
    assert (lists == cases.targets[:, None]).any(1).mean() == pytest.approx(best["eval_recall@10"])
    practised = run_stage(grpo, run_dir, max_steps=2, eval_steps=1, save_steps=1, overwrite="true")
    steps = [row for row in practised.state.log_history if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in steps)
    evaluate.main(["--run_dir", str(run_dir), "--models", "sft", "rl", "--overwrite", "true"])
    capsys.readouterr()
    recommend.main(["--run_dir", str(run_dir), "--user", "u0", "--model", "sft", "--k", "5"])
    printed = capsys.readouterr().out
    assert sum(title in printed for title in Dataset.load(run_dir).titles) >= 5
    card = (run_dir / "sft" / "README.md").read_text()
    assert "its decoder with one position an item in an RQ-Transformer" in card
    monkeypatch.chdir(run_dir / "sft")
    for example in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        exec(example, {})
    with pytest.raises(InputError, match="onnx is for an RQ-Transformer from scratch"):
        write_onnx(trainer.model, 10, run_dir / "model.onnx")


def test_a_finished_one_is_trained_further_and_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "llm", "Llama")
    runs = [make_run_dir(tmp_path / name) for name in ("a", "b", "c")]
    short = {"max_steps": 2, "eval_steps": 2, "save_steps": 2}
    for run in runs[:2]:
        run_stage(train, run, model_name_or_path=tmp_path / "llm", **FLAGS, **short)
    assert weights(runs[0] / "sft") == weights(runs[1] / "sft")
    further = run_stage(train, runs[2], model_name_or_path=runs[0] / "sft", **short)
    assert further.model.config.opening == AutoTokenizer.from_pretrained(tmp_path / "llm")(OPENING)["input_ids"]
    assert logged(runs[2] / "sft")


def test_a_chats_question_is_the_opening_and_layers_may_be_run_again(tmp_path: Path) -> None:
    """Activation checkpointing keeps less and changes nothing; the items' tokens stand alone, without the question's."""
    save_pretrained(tmp_path / "llm", "Llama")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llm")
    tokenizer.chat_template = "word1 {% for message in messages %}{{ message['content'] }}{% endfor %} word2"
    tokenizer.save_pretrained(tmp_path / "llm")
    short = {
        "model_name_or_path": tmp_path / "llm",
        "chat_template": "true",
        "max_steps": 2,
        "eval_steps": 2,
        "save_steps": 2,
    }
    chosen = {name: value for name, value in FLAGS.items() if name != "opening"} | short
    runs = [make_run_dir(tmp_path / name) for name in ("a", "b")]
    trainer = run_stage(train, runs[0], **chosen)
    assert trainer.model.config.opening == list(chat_openings(tokenizer)["next_item"])
    assert trainer.renderer.opening == ()
    again = run_stage(train, runs[1], **chosen, activation_checkpointing="true")
    for name, value in state(trainer.model).items():
        torch.testing.assert_close(state(again.model)[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("head", ["additive", "transformer"])
def test_the_other_heads_learn_too(head: str, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "llm", "Llama")
    run = make_run_dir(tmp_path / "run")
    trainer = run_stage(train, run, model_name_or_path=tmp_path / "llm", depth_head=head, **FLAGS)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"item_to_text": 1.0}, "a task with texts needs a model that reads words, .*--layout flat"),
        ({"vocabulary_loss_weight": 0.1}, "vocabulary_loss_weight=0.1 is beside words"),
        ({"train_weights": "lora"}, "train_weights=lora is for a language model's layers, .*--layout flat"),
        ({"chat_template": "true"}, "has no chat template"),
    ],
)
def test_what_it_cannot_do_is_refused_at_once(settings, words, run_dir, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "llm", "Llama")
    with pytest.raises(InputError, match=words):
        run_stage(train, make_run_dir(tmp_path / "run"), model_name_or_path=tmp_path / "llm", **FLAGS, **settings)


def test_settings_that_do_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="layout=one_position is of a pretrained model"):
        BackboneConfig(layout="one_position")
    with pytest.raises(InputError, match="opening is the text before the items of layout=one_position"):
        BackboneConfig(model_name_or_path="a/model", opening="Items:")
    with pytest.raises(InputError, match="item_loss_weight has no effect on depth_head=marginal"):
        BackboneConfig(model_name_or_path="a/model", layout="one_position", item_loss_weight=0.5)


def test_a_model_that_does_more_to_words_is_refused(run_dir, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "gemma", "Gemma")  # its embedding scales rows
    with pytest.raises(InputError, match=r"GemmaForCausalLM cannot have one position an item; set --layout flat\."):
        start(run_dir, tmp_path / "gemma")

"""sft/train.py on a small run directory: what it learns, what it writes, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from run_dirs import (
    LEVEL_SIZES,
    N_ITEMS,
    SFT_FLAGS,
    WORDS,
    assert_one_sentence,
    exit_code,
    finished_sft_run,
    flags,
    make_run_dir,
    run_stage,
    save_pretrained,
    state,
    valid_figures,
    weights,
    write_sid_stage,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sidrec.data.dataset import Dataset
from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.errors import InputError
from sidrec.sft import fine_tuning, train
from sidrec.sft.backbone import load_backbone
from sidrec.sft.settings import BackboneConfig, SftConfig
from sidrec.sft.vocabulary import START_TOKEN, add_sid_tokens
from sidrec.tokenizer.semantic_ids import SemanticIds

N_BYTES = 258  # <pad>, <eos> and the bytes: rows that this project's own tokenizer has before SID tokens
FIRST_CODE = N_BYTES + 4  # after <history> and the control tokens of tasks with texts
N_ROWS = FIRST_CODE + sum(LEVEL_SIZES)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return make_run_dir(tmp_path_factory.mktemp("sft") / "run")


@pytest.fixture(scope="module")
def trainer(run_dir):
    return run_stage(train, run_dir)


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_the_loss_goes_down(trainer):
    logged_losses = losses(trainer)
    assert len(logged_losses) == 12
    assert np.mean(logged_losses[-3:]) < np.mean(logged_losses[:3]) - 0.15


def test_stored_reference(tmp_path):
    """Loss and Recall@10 of the first steps at seed 0 in float32 without dropout: a refactor must not change them."""
    trainer = run_stage(train, make_run_dir(tmp_path / "run"), dropout=0, max_steps=6, eval_steps=3, save_steps=3)
    assert losses(trainer) == pytest.approx([1.39248, 1.39061, 1.36493, 1.27738, 1.30819, 1.18476], abs=5e-5)
    measured = [row["eval_recall@10"] for row in trainer.state.log_history if "eval_recall@10" in row]
    assert measured == pytest.approx([18 / 60, 22 / 60])


def test_the_right_weights_moved(run_dir, trainer):
    config = BackboneConfig(
        **{name: SFT_FLAGS[name] for name in BackboneConfig.__dataclass_fields__ if name in SFT_FLAGS},
    )
    before, tokenizer = load_backbone(config, seed=0)
    add_sid_tokens(before, tokenizer, SemanticIds.load(run_dir), Dataset.load(run_dir).titles, "codebook", seed=0)
    final = load_file(run_dir / "sft" / "model.safetensors")
    embedding = "model.embed_tokens.weight"
    for name, weight in before.state_dict().items():
        if name not in (embedding, "lm_head.weight"):
            assert not torch.equal(weight, final[name]), f"{name} did not move"
    old, new = before.state_dict()[embedding], final[embedding]
    moved = (old != new).any(dim=1)
    assert moved[N_BYTES]
    assert moved[FIRST_CODE:N_ROWS].all()
    assert not moved[:N_BYTES].any(), "bytes never occur, so their rows get no gradient"
    assert not moved[N_BYTES + 1 : FIRST_CODE].any(), "no task with texts was asked for"
    assert len(moved) == 320
    assert not moved[N_ROWS:].any(), "rows that only pad the matrix"


def test_same_seed_same_bytes_other_seed_other_bytes(run_dir, trainer, tmp_path_factory, tmp_path):
    again = finished_sft_run(tmp_path_factory)
    assert again != run_dir
    assert weights(again / "sft") == weights(run_dir / "sft")
    for name in ("valid.json", "sidrec.json", "manifest.json"):
        assert (again / "sft" / name).read_bytes() == (run_dir / "sft" / name).read_bytes()
    run_stage(train, make_run_dir(tmp_path / "run"), seed=1, max_steps=4)
    assert weights(tmp_path / "run" / "sft") != weights(run_dir / "sft")


def test_finished_stage_is_skipped(run_dir, trainer, capsys):
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "sft").rglob("*")}
    assert run_stage(train, run_dir) is None
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (run_dir / "sft").rglob("*")} == before


def test_another_configuration_or_sid_set_is_refused(run_dir, trainer, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    with pytest.raises(InputError, match=r"sft was made with learning_rate=0\.02, not 0\.03; .*--overwrite true"):
        run_stage(train, copy, learning_rate=0.03)
    with pytest.raises(
        InputError, match=r"sft was made with metric_for_best_model='eval_recall@10', not 'eval_ndcg@10'"
    ):
        run_stage(train, copy, metric_for_best_model="eval_ndcg@10")
    write_sid_stage(copy, seed=1)
    with pytest.raises(InputError, match=r"another .*codes_all\.npy than the one there now"):
        run_stage(train, copy)
    with pytest.raises(InputError, match=r"another .*codes_all\.npy than the one there now"):
        Recommender.load(copy, "sft")
    assert weights(copy / "sft") == weights(run_dir / "sft")
    assert run_stage(train, copy, overwrite="true", max_steps=4) is not None
    assert weights(copy / "sft") != weights(run_dir / "sft")


def test_the_output_is_an_ordinary_model_folder(run_dir, trainer):
    folder = run_dir / "sft"
    assert not (folder / "checkpoints").exists()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = SemanticIds.load(run_dir).text(7)
    ids = tokenizer(START_TOKEN + text)["input_ids"]
    assert len(ids) == 1 + len(LEVEL_SIZES)
    assert tokenizer.decode(ids) == START_TOKEN + text
    assert tokenizer.decode(tokenizer("Ünïted 東京").input_ids) == "Ünïted 東京"
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
        torch.testing.assert_close(logits, trainer.model.eval()(torch.tensor([ids])).logits, rtol=0, atol=0)
    assert SemanticIds.read(folder / "semantic_ids").digest == SemanticIds.load(run_dir).digest
    assert {path.stat().st_mode for path in folder.rglob("*.safetensors")} == {(folder / "valid.json").stat().st_mode}


def test_the_saved_model_has_the_recall_that_chose_it(run_dir, trainer):
    measured = json.loads((run_dir / "sft" / "valid.json").read_text())
    assert [row["step"] for row in measured] == [4, 8, 12]
    cases = Dataset.load(run_dir).cases("valid")
    lists = Recommender.load(run_dir, "sft").recommend(cases.histories, 10, exclude_seen=True).items
    hits = lists == cases.targets[:, None]
    best = max(measured, key=lambda row: row["eval_recall@10"])
    assert hits.any(1).mean() == pytest.approx(best["eval_recall@10"])
    assert (hits / np.log2(np.arange(2, 12))).sum(1).mean() == pytest.approx(best["eval_ndcg@10"])
    assert best["eval_recall@10"] <= best["eval_recall@50"] <= 1
    assert best["eval_recall@10"] > 20 / N_ITEMS, "twice what a random list of ten finds"


def test_the_best_checkpoint_is_saved_not_the_last(tmp_path, monkeypatch):
    scripted = iter([0.1, 0.9, 0.5])
    monkeypatch.setattr("sidrec.sft.validation.valid_metrics", lambda *_: valid_figures(next(scripted)))
    seen: dict[int, dict[str, torch.Tensor]] = {}

    class KeepWeights(fine_tuning.SidSFTTrainer):
        def evaluate(self, *args, **kwargs):
            seen[self.state.global_step] = state(self.model)
            return super().evaluate(*args, **kwargs)

    monkeypatch.setattr(fine_tuning, "SidSFTTrainer", KeepWeights)
    run_stage(train, make_run_dir(tmp_path / "run"))
    final = load_file(tmp_path / "run" / "sft" / "model.safetensors")
    assert all(torch.equal(final[name], seen[8][name]) for name in final)
    assert not all(torch.equal(final[name], seen[12][name]) for name in final)


def test_without_measurements_the_last_model_is_the_one_that_is_measured_and_saved(tmp_path):
    run_dir = make_run_dir(tmp_path / "run")
    unmeasured = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 5}
    trainer = run_stage(train, run_dir, **unmeasured)
    (row,) = json.loads((run_dir / "sft" / "valid.json").read_text())
    assert row["step"] == trainer.state.global_step == 12
    cases = Dataset.load(run_dir).cases("valid")
    lists = Recommender.load(run_dir, "sft").recommend(cases.histories, 10, exclude_seen=True).items
    assert (lists == cases.targets[:, None]).any(1).mean() == pytest.approx(row["eval_recall@10"])
    saved, last = load_file(run_dir / "sft" / "model.safetensors"), state(trainer.model)
    assert all(torch.equal(saved[name], last[name]) for name in saved)
    for idle in ({"save_strategy": "best"}, {"early_stopping_patience": 2}):
        assert exit_code("sft/train.py", *flags(train, tmp_path / "run", **unmeasured | idle)) == 2


@pytest.mark.parametrize("kind", ["Qwen3", "Llama", "Mistral", "Gemma"])
def test_a_pretrained_untied_model(tmp_path, kind):
    pretrained = save_pretrained(tmp_path / "pretrained", kind)
    run_dir = make_run_dir(tmp_path / "run")
    trainer = run_stage(train, run_dir, model_name_or_path=tmp_path / "pretrained", max_steps=8)
    assert np.mean(losses(trainer)[-2:]) < np.mean(losses(trainer)[:2]) - 0.05
    final = load_file(run_dir / "sft" / "model.safetensors")
    assert json.loads((run_dir / "sft" / "config.json").read_text())["tie_word_embeddings"] is False
    for name, matrix in (
        ("model.embed_tokens.weight", pretrained.get_input_embeddings().weight),
        ("lm_head.weight", pretrained.get_output_embeddings().weight),
    ):
        assert len(final[name]) == 64
        assert torch.equal(final[name][: len(WORDS)], matrix), f"{name}: words that never occur must not move"
    assert not torch.equal(final["model.embed_tokens.weight"], final["lm_head.weight"])
    tokens = AutoTokenizer.from_pretrained(run_dir / "sft")("word3 " + SemanticIds.load(run_dir).text(0))["input_ids"]
    assert tokens[0] == WORDS.index("word3")
    assert min(tokens[1:]) > len(WORDS)
    items = Recommender.load(run_dir, "sft").recommend([np.array([3, 4])], 5, exclude_seen=True).items[0]
    assert len(set(items) - {-1, 3, 4}) == 5


def mistakes(run_dir: Path) -> dict[str, tuple[dict[str, object], str]]:
    return {
        "short context": ({"max_items": 1}, "max_items=1 is too short"),
        "no such model": ({"model_name_or_path": run_dir / "nowhere"}, "nowhere' cannot be loaded"),
        "heads": ({"num_attention_heads": 3}, "hidden_size=16 is not a multiple of num_attention_heads=3"),
        "unsaved measurements": ({"save_steps": 8}, "save_steps=8"),
        "unknown flag": ({"learning_rates": 1}, "learning_rates"),
    }


@pytest.mark.parametrize("mistake", list(mistakes(Path())))
def test_bad_input_is_one_sentence_and_claims_no_folder(tmp_path, capsys, mistake):
    run_dir = make_run_dir(tmp_path / "run")
    changed, sentence = mistakes(run_dir)[mistake]
    assert exit_code("sft/train.py", *flags(train, run_dir, **changed)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert_one_sentence(error)
    assert not (run_dir / "sft").exists(), "the corrected command would be refused"


def test_a_finished_model_goes_on_where_it_is(run_dir, trainer, tmp_path):
    further = make_run_dir(tmp_path / "run")
    folder = run_dir / "sft"
    start = fine_tuning.start_model(
        Dataset.load(further),
        SemanticIds.load(further),
        SftConfig(run_dir=further),
        BackboneConfig(model_name_or_path=str(folder)),
        seed=0,
    )
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(start[0].state_dict()[name], value) for name, value in saved.items())
    assert start[2] == trainer.renderer.vocabulary
    run_stage(train, further, model_name_or_path=folder, max_steps=4, learning_rate=1e-6)
    figures = {
        name: json.loads((place / "sft" / "valid.json").read_text())
        for name, place in (("old", run_dir), ("new", further))
    }
    assert figures["new"][-1]["eval_recall@10"] == pytest.approx(
        max(row["eval_recall@10"] for row in figures["old"]), abs=0.02
    )
    write_sid_stage(further, seed=1)
    with pytest.raises(InputError, match="belongs to another SID set"):
        run_stage(train, further, model_name_or_path=folder, overwrite="true")


def test_sft_before_the_tokenizer_names_what_is_missing(tmp_path, capsys):
    run_dir = make_run_dir(tmp_path / "run")
    shutil.rmtree(run_dir / "sid")
    assert exit_code("sft/train.py", *flags(train, run_dir)) == 2
    error = capsys.readouterr().err
    assert "sid holds no finished 'sid' stage; run `bash run_tokenizer.sh" in error
    assert_one_sentence(error)

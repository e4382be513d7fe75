"""LoRA and rows alone: what moves, what is written, and that a plain model comes out of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from run_dirs import LEVEL_SIZES, make_run_dir, run_stage, save_pretrained, state, weights
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from sidrec.data.dataset import Dataset
from sidrec.decoding.output_head import causal_model
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import CONTROL_TOKENS
from sidrec.pipeline.errors import InputError
from sidrec.sft import fine_tuning, train
from sidrec.sft.settings import BackboneConfig, SftConfig, WeightsConfig
from sidrec.sft.weights import with_adapters
from sidrec.tokenizer.semantic_ids import SemanticIds

CHANGED = {"lora_rank": 4, "lora_dropout": 0, "embedding_init": "codebook", "learning_rate": 0.01}


def start_from(kind: str, folder: Path) -> dict[str, object]:
    """Flags for a model made from scratch, or a pretrained one with a tied or an untied head."""
    if kind == "scratch":
        return {}
    save_pretrained(folder, "Qwen3", tied=kind == "tied")
    return {"model_name_or_path": folder}


@pytest.mark.parametrize("method", ["lora", "dora", "sid_rows"])
@pytest.mark.parametrize("kind", ["scratch", "tied", "untied"])
def test_only_what_was_asked_for_moves_and_the_saved_model_is_the_trained_one(tmp_path, method, kind):
    run_dir = make_run_dir(tmp_path / "run")
    flags = CHANGED | start_from(kind, tmp_path / "pretrained") | {"train_weights": method}
    seen: dict[str, torch.Tensor] = {}

    def look(trainer) -> None:
        model = trainer.model.eval()
        assert isinstance(model, PeftModel)
        input_ids = torch.arange(40)[None]
        with torch.no_grad():
            seen["logits"] = model(input_ids).logits

    trainer = run_stage(train, run_dir, at_end=look, max_steps=24, eval_steps=12, save_steps=12, **flags)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.02, "the third pass against the first"
    plain = AutoModelForCausalLM.from_pretrained(run_dir / "sft")
    assert not isinstance(plain, PeftModel)
    with torch.no_grad():
        torch.testing.assert_close(plain(torch.arange(40)[None]).logits, seen["logits"], rtol=0, atol=1e-5)

    start, after = start_state(run_dir, flags), plain.state_dict()
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "sft")
    first = tokenizer.convert_tokens_to_ids(CONTROL_TOKENS[0])
    codes = slice(first + len(CONTROL_TOKENS), first + len(CONTROL_TOKENS) + sum(LEVEL_SIZES))
    assert set(start) == set(after)
    for name in start:
        moved = (start[name] != after[name]).reshape(len(start[name]), -1).any(1)
        if "embed_tokens" in name or "lm_head" in name:
            assert moved[codes].all(), name
            assert not moved[:first].any(), f"{name}: rows of words moved"
            assert not moved[codes.stop :].any(), name
        elif method != "sid_rows" and name.endswith("proj.weight"):
            assert moved.any(), name
        else:
            assert not moved.any(), name
    tied = after["lm_head.weight"].data_ptr() == after["model.embed_tokens.weight"].data_ptr()
    assert tied == (kind != "untied") == plain.config.tie_word_embeddings
    cases = Dataset.load(run_dir).cases("valid")
    recall = (
        Recommender.load(run_dir, "sft").recommend(cases.histories, 10, exclude_seen=True).items
        == cases.targets[:, None]
    ).any(1)
    assert recall.mean() == pytest.approx(trainer.state.best_metric)


def start_state(run_dir: Path, flags: dict[str, object]) -> dict[str, torch.Tensor]:
    """The weights that training began with."""
    dataset, sids = Dataset.load(run_dir), SemanticIds.load(run_dir)
    config = SftConfig(run_dir=run_dir, embedding_init="codebook")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    name = flags.get("model_name_or_path")
    backbone = BackboneConfig(architecture="qwen3", model_name_or_path=name and str(name), **small)
    return state(fine_tuning.start_model(dataset, sids, config, backbone, seed=0)[0])


@pytest.mark.parametrize("kind", ["scratch", "untied"])
def test_the_adapter_alone_gives_the_same_model(tmp_path, kind):
    run_dir = make_run_dir(tmp_path / "run")
    flags = CHANGED | start_from(kind, tmp_path / "pretrained") | {"train_weights": "lora"}
    run_stage(train, run_dir, max_steps=4, **flags)
    adapter = run_dir / "sft" / "adapter"
    files = {path.name: path.stat().st_size for path in adapter.glob("*.safetensors")}
    assert list(files) == ["adapter_model.safetensors"]
    model = AutoModelForCausalLM.from_pretrained(run_dir / "sft")
    model.load_state_dict(start_state(run_dir, flags))
    model = PeftModel.from_pretrained(model, adapter)
    merged = AutoModelForCausalLM.from_pretrained(run_dir / "sft")
    with torch.no_grad():
        ids = torch.arange(40)[None]
        torch.testing.assert_close(model(ids).logits, merged(ids).logits, rtol=0, atol=1e-5)


PLAIN_PEFT = """
import sys
sys.modules["sidrec"] = None  # not even where it is installed
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
ids = torch.arange(40)[None]
for folder in sys.argv[1:]:
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        logits = AutoPeftModelForCausalLM.from_pretrained(folder + "/adapter")(ids).logits
    torch.testing.assert_close(logits, wanted[..., : logits.shape[-1]], rtol=0, atol=1e-5)
"""


def test_an_adapter_is_small_and_plain_peft_loads_it_on_the_original_model(tmp_path):
    folders = []
    for method, kind in (("lora", "tied"), ("lora", "untied"), ("sid_rows", "tied")):
        run_dir = make_run_dir(tmp_path / f"{method}_{kind}")
        flags = CHANGED | start_from(kind, tmp_path / f"pretrained_{method}_{kind}") | {"train_weights": method}
        run_stage(train, run_dir, max_steps=4, **flags)
        folders.append(run_dir / "sft")
        with safe_open(folders[-1] / "adapter" / "adapter_model.safetensors", framework="pt") as file:
            names = list(file.keys())
        assert names
        assert not [name for name in names if name.endswith(("embed_tokens.weight", "lm_head.weight"))], (
            "the base's rows"
        )
    command = [sys.executable, "-c", PLAIN_PEFT, *map(str, folders)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_run_with_adapters_that_is_resumed_writes_the_same_bytes(tmp_path):
    flags = CHANGED | {"train_weights": "lora", "lora_dropout": 0.1, "eval_steps": 2, "save_steps": 2, "max_steps": 6}
    run_stage(train, make_run_dir(tmp_path / "whole"), **flags)
    broken = make_run_dir(tmp_path / "broken")

    class StoppedError(Exception): ...

    def stop(*_args: object) -> None:
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        evaluate = fine_tuning.SidSFTTrainer.evaluate
        patch.setattr(
            fine_tuning.SidSFTTrainer,
            "evaluate",
            lambda self, *rest, **named: stop() if self.state.global_step == 6 else evaluate(self, *rest, **named),
        )
        with pytest.raises(StoppedError):
            run_stage(train, broken, **flags)
    assert not (broken / "sft" / "model.safetensors").exists()
    run_stage(train, broken, **flags)
    assert weights(broken / "sft") == weights(tmp_path / "whole" / "sft")


def test_full_training_wraps_nothing(tiny_model):
    model, _ = tiny_model
    assert with_adapters(model, WeightsConfig(), [1]) is model
    assert causal_model(model) is model


def test_impossible_adapters_are_refused():
    with pytest.raises(InputError, match="lora_rank=0 must be at least 1"):
        WeightsConfig(lora_rank=0)
    with pytest.raises(InputError, match=r"lora_dropout=1\.5"):
        WeightsConfig(lora_dropout=1.5)

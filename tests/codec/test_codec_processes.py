"""Two processes train the codec as one does: the same weights, but for roundings."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from run_dirs import ROOT, start
from safetensors.torch import load_file

from sidrec.__main__ import main
from sidrec.codec import train_transformer, train_vae

pytestmark = pytest.mark.slow

ACCELERATE = Path(sys.executable).parent / "accelerate"
CODEC = (
    "--hidden_size 16 --latent_dim 16 --num_attention_heads 2 --codebook_sizes 8 8 --training_steps 4 --batch_size 8 "
    "--warmup_steps 1 --reset_every 2"
)
TRANSFORMER = (
    "--width 16 --heads 2 --spatial_layers 1 --transformer_dropout 0 --training_steps 4 --batch_size 8 --warmup_steps 1"
)


def launched(script: str, flags: str, run_dir: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    config = ROOT / "configs" / "accelerate" / "two_processes.yaml"
    way = ["--config_file", config, "--main_process_port", port]
    process = start(ACCELERATE, "launch", *way, script, *flags.split(), "--run_dir", run_dir, OMP_NUM_THREADS="1")
    output = process.communicate()[0]
    assert process.returncode == 0, output


def test_two_processes_are_as_good_as_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 50, 12))) for _ in range(60)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    one, two = tmp_path / "one", tmp_path / "two"
    for run_dir in (one, two):
        flags = ["--vocabulary", "280", "--row_length", "16", "--valid_share", "0.2", "--test_share", "0.2"]
        main(["codec", "text", "--documents", str(tmp_path / "corpus.jsonl"), "--run_dir", str(run_dir), *flags])
    train_vae.main([*CODEC.split(), "--run_dir", str(one)])
    train_transformer.main([*TRANSFORMER.split(), "--run_dir", str(one)])
    launched("codec/train_vae.py", CODEC, two)
    launched("codec/train_transformer.py", TRANSFORMER, two)
    for name in ("codec/codec.safetensors", "codec_transformer/rq_transformer.safetensors"):
        expected, made = load_file(one / name), load_file(two / name)
        for key in expected:
            assert torch.allclose(made[key], expected[key], rtol=1e-3, atol=1e-3), f"{name}: {key}"

"""Sizes by gain: as many codes as there are clusters, fewer at levels that gain less, none beyond the most."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sidrec.__main__ import main
from sidrec.codec import train_vae
from sidrec.codec.level_sizes import LEAST_SIZE, sizes_by_gain
from sidrec.codec.rq_vae import RQVAE
from sidrec.codec.settings import CodecQuantizerSettings
from sidrec.pipeline.errors import InputError


def clusters(n_coarse: int, seed: int = 0) -> torch.Tensor:
    """2,000 vectors, a little noise around n_coarse places."""
    rng = np.random.default_rng(seed)
    places = rng.standard_normal((n_coarse, 8)) * 10
    return torch.tensor(
        places[rng.integers(n_coarse, size=2000)] + rng.standard_normal((2000, 8)) * 0.1, dtype=torch.float32
    )


def test_a_level_stops_where_its_clusters_are_told_apart() -> None:
    sizes = sizes_by_gain(clusters(64), [1024, 1024], 0.3, np.random.default_rng(0))
    assert 64 <= sizes[0] <= 512  # k-means from drawn vectors needs more codes than there are places to meet all
    assert sizes[1] == LEAST_SIZE  # of noise no doubling takes so much off, 1 - 2^(-2/8) at best


def test_a_lower_price_makes_larger_codebooks() -> None:
    by_gain = [sizes_by_gain(clusters(64), [512], gain, np.random.default_rng(0))[0] for gain in (0.9, 0.5, 0.05)]
    assert by_gain == sorted(by_gain)
    assert by_gain[0] < by_gain[-1]


def test_no_level_is_larger_than_asked_for() -> None:
    assert sizes_by_gain(clusters(64), [32, 8], 0.01, np.random.default_rng(0)) == [32, 8]


@pytest.mark.parametrize(
    "settings", [{"size_gain": 1.0}, {"size_gain": 0.1, "share_codebooks": True}, {"size_gain": -0.1}]
)
def test_impossible_gains_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match="size_gain"):
        CodecQuantizerSettings(**settings)


def test_a_codec_is_trained_and_loaded_with_the_sizes_that_were_chosen(tmp_path: Path) -> None:
    texts = [f"{number} {number * 7} {number * 11}" for number in range(100)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run = ["--run_dir", str(tmp_path / "run")]
    text = ["--vocabulary", "280", "--row_length", "16", "--valid_share", "0.2", "--test_share", "0.2"]
    main(["codec", "text", "--documents", str(tmp_path / "corpus.jsonl"), *text, *run])
    flags = "--hidden_size 16 --latent_dim 16 --num_attention_heads 2 --training_steps 2 --warmup_steps 1"
    flags += " --codebook_sizes 64 64 --size_gain 0.9"
    train_vae.main([*flags.split(), *run])
    codec = RQVAE.load(tmp_path / "run" / "codec")
    assert codec.settings.codebook_sizes == codec.quantizer.sizes == [LEAST_SIZE, LEAST_SIZE]

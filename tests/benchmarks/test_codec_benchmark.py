"""The codec's benchmark: its peers are causal and their caches change nothing, its figures are what they say, a short run prints them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import codec as benchmark
from benchmarks.codec_peers import FlatTransformer, TokenModel
from sidrec.__main__ import main

SIZES = [5, 3]


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """Branches that begin as 0 are 0 no more."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" not in name:
                weight.add_(torch.randn_like(weight) * 0.2)
    return network.eval()


def token_model() -> TokenModel:
    torch.manual_seed(0)
    model = shaken(TokenModel(20, 16, 2, 2, 0.0))
    assert isinstance(model, TokenModel)
    return model


def flat_model() -> FlatTransformer:
    torch.manual_seed(0)
    model = shaken(FlatTransformer([torch.randn(size, 8) for size in SIZES], 16, 2, 2, 0.0))
    assert isinstance(model, FlatTransformer)
    return model


def test_a_token_depends_on_those_before_it_and_all_next_ones_sum_to_one() -> None:
    model, ids = token_model(), torch.arange(2, 8)[None]
    before = model.log_probs(ids)
    changed = ids.clone()
    changed[0, 3] = 19
    assert torch.allclose(model.log_probs(changed)[0, :3], before[0, :3], atol=1e-5)
    every = torch.cat([ids[:, :2].expand(20, -1), torch.arange(20)[:, None]], 1)
    assert model.log_probs(every)[:, 2].exp().sum().item() == pytest.approx(1.0, rel=1e-4)


def test_tokens_are_written_as_without_a_cache() -> None:
    model, prompt = token_model(), torch.tensor([[3, 4, 5], [6, 7, 8]])
    ids = prompt
    for _ in range(5):
        ids = torch.cat([ids, model.logits(ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.written(prompt, 5), ids[:, 3:])


def test_the_flat_model_is_causal_and_its_latents_sum_to_one() -> None:
    model = flat_model()
    every = torch.tensor(list(itertools.product(*map(range, SIZES))))
    codes = torch.stack([torch.zeros_like(every), every], 1)
    log_probs = model.log_probs(codes)
    assert log_probs[:, 1].sum(1).exp().sum().item() == pytest.approx(1.0, rel=1e-4)
    assert torch.allclose(log_probs[:, 0], log_probs[:1, 0].expand(len(every), -1), atol=1e-5)


def test_flat_codes_are_written_as_without_a_cache() -> None:
    model = flat_model()
    written = model.written(2, 3)
    every = torch.tensor(list(itertools.product(*map(range, SIZES))))
    for latent, level in itertools.product(range(3), range(2)):
        ways = written[:1].expand(len(every), -1, -1).clone()
        ways[:, latent, level] = every[:, level]
        best = ways[model.log_probs(ways)[:, latent, level].argmax(), latent, level]
        assert best == written[0, latent, level]


def test_the_floor_is_what_the_most_frequent_token_gives() -> None:
    train, test = np.array([[2, 2, 3, 0]]), np.array([[2, 3, 3, 4]])
    floor = benchmark.floor_of(train, test, 5)
    assert floor["accuracy"] == 0.25
    expected = -(np.log(2 / 3) + 2 * np.log(1 / 3) + np.log(1e-3 / 3)) / 4
    assert floor["nats"] == pytest.approx(expected, rel=1e-2)


def test_a_token_model_has_about_the_parameters_that_are_asked_for() -> None:
    model = benchmark.token_model_of(3_000_000, 1000, width=128)
    assert abs(benchmark.n_parameters(model) - 3_000_000) < 150_000


@pytest.mark.slow
def test_a_short_run_prints_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"{number} and {number * 7} and {number * 11} again" for number in range(100)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    text = ["--vocabulary", "280", "--row_length", "16", "--valid_share", "0.2", "--test_share", "0.2"]
    main(["codec", "text", "--documents", str(tmp_path / "corpus.jsonl"), "--run_dir", str(tmp_path / "run"), *text])
    flags = ["--text_dir", str(tmp_path / "run" / "text"), "--work_dir", str(tmp_path / "work"), "--steps", "51"]
    for _ in range(2):  # the second time finds its rows
        benchmark.main([*flags, "--rows", "4x, no quantizer"])
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert first == second
    assert (tmp_path / "work" / "codec.png").stat().st_size > 1000
    figures = json.loads(first)
    assert figures["ceiling_4x"] > 0.9
    assert 0 < figures["floor_4x"] < figures["ceiling_4x"]

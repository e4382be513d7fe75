"""Both trainings from the command line: what they learn, what they move, resume, first losses, and the three commands on top."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from sidrec.__main__ import main
from sidrec.codec import train_transformer, train_vae
from sidrec.codec.completion import TextCodec
from sidrec.codec.generation import Sampling
from sidrec.codec.rq_vae import RQVAE
from sidrec.codec.text_rows import TextRows
from sidrec.codec.training import CodecTraining, batch_of
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "its",
    "dog",
    "under",
    "old",
    "tree",
    "with",
    "two",
    "birds",
]
TRAINING = {
    "training_steps": 40, "batch_size": 8, "evaluate_every": 20, "warmup_steps": 5, "learning_rate": 0.01, "valid_rows": 8,
}  # fmt: skip
CODEC = {"hidden_size": 32, "latent_dim": 32, "num_attention_heads": 2, "codebook_sizes": "32 32 32"} | TRAINING
TRANSFORMER = {"width": 32, "heads": 2, "spatial_layers": 2} | TRAINING
FIRST_VALID_NATS = 4.457  # of an untrained codec with its codebooks' start, on the run of `text`


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with text/ of 200 sentences."""
    folder = tmp_path_factory.mktemp("codec")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 24)) + "." for _ in range(200)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    flags = ["--vocabulary", "300", "--row_length", "16", "--valid_share", "0.1", "--test_share", "0.1"]
    main(["codec", "text", "--documents", str(folder / "corpus.jsonl"), "--run_dir", str(folder / "run"), *flags])
    return folder / "run"


def flags_of(settings: dict[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", *str(value).split())]


def copy_of(text: Path, folder: Path) -> Path:
    shutil.copytree(text / "text", folder / "text")
    return folder


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both trainings."""
    run_dir = copy_of(text, tmp_path_factory.mktemp("trained"))
    train_vae.main([*flags_of(CODEC), "--run_dir", str(run_dir)])
    train_transformer.main([*flags_of(TRANSFORMER), "--run_dir", str(run_dir)])
    return run_dir


def test_the_codec_learns_from_a_stored_start(trained: Path) -> None:
    report = read_json(trained / "codec" / "report.json")
    first, *_, last = report["curve"]
    assert first["step"] == 0
    assert first["cross_entropy"] == pytest.approx(FIRST_VALID_NATS, rel=0.02)
    assert last["accuracy"] > first["accuracy"] + 0.1
    assert report["bits_a_token"] == 15 / 4


def test_a_finished_training_leaves_no_checkpoint(trained: Path) -> None:
    for stage in ("codec", "codec_transformer"):
        assert not list((trained / stage / "checkpoints").glob("step_*"))


def test_in_bfloat16_weights_and_codebooks_stay_in_float32(text: Path, tmp_path: Path) -> None:
    run_dir = copy_of(text, tmp_path / "run")
    AcceleratorState._reset_state()  # of a process that has computed in float32 before
    try:
        train_vae.main([*flags_of(CODEC), "--training_steps", "20", "--bf16", "true", "--run_dir", str(run_dir)])
    finally:
        AcceleratorState._reset_state()
    curve = read_json(run_dir / "codec" / "report.json")["curve"]
    assert curve[-1]["cross_entropy"] < curve[0]["cross_entropy"]
    assert {tensor.dtype for tensor in load_file(run_dir / "codec" / "codec.safetensors").values()} == {torch.float32}


def test_the_model_of_codes_learns(trained: Path) -> None:
    curve = read_json(trained / "codec_transformer" / "report.json")["curve"]
    assert curve[0]["loss"] == pytest.approx(3 * np.log(32), rel=0.05)
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.4
    assert curve[-1]["loss"] == pytest.approx(sum(curve[-1][f"loss_{level}"] for level in (1, 2, 3)))


def test_finished_trainings_are_not_run_again(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_vae.main(["--run_dir", str(trained)])
    train_transformer.main(["--run_dir", str(trained)])
    assert capsys.readouterr().out.count("finished already") == 2


@pytest.mark.parametrize("stage", ["codec", "codec_transformer"])
def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    stage: str, text: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = copy_of(text, tmp_path / "run")
    if stage == "codec_transformer":
        shutil.copytree(trained / "codec", run_dir / "codec")
    module, settings = (train_vae, CODEC) if stage == "codec" else (train_transformer, TRANSFORMER)
    flags = [*flags_of(settings), "--run_dir", str(run_dir)]
    step = CodecTraining._one_step

    def stop_at_30(self: CodecTraining, number: int) -> float:
        if number == 30:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(CodecTraining, "_one_step", stop_at_30)
    with pytest.raises(KeyboardInterrupt):
        module.main(flags)
    monkeypatch.undo()
    module.main(flags)
    name = {"codec": "codec.safetensors", "codec_transformer": "rq_transformer.safetensors"}[stage]
    expected, again = (load_file(folder / stage / name) for folder in (trained, run_dir))
    assert all(torch.equal(expected[key], again[key]) for key in expected)


def test_frozen_backbones_stay_and_everything_else_moves(text: Path, tmp_path: Path) -> None:
    run_dir = copy_of(text, tmp_path / "run")
    train_vae.main([*flags_of(CODEC), "--training_steps", "6", "--frozen_steps", "6", "--run_dir", str(run_dir)])
    codec = RQVAE.load(run_dir / "codec")
    torch.manual_seed(0)
    start = RQVAE(codec.network, codec.settings, codec.vocabulary, rows_per_step=1)
    for (name, before), (_, after) in zip(start.named_parameters(), codec.named_parameters(), strict=True):
        if ".backbone." in name:
            assert torch.equal(before, after), name
        elif "codebooks" not in name:
            assert not torch.equal(before, after), name


def test_without_a_quantizer_there_is_no_model_of_codes(text: Path, tmp_path: Path) -> None:
    run_dir = copy_of(text, tmp_path / "run")
    train_vae.main(
        [
            *flags_of(CODEC),
            "--training_steps",
            "1",
            "--warmup_steps",
            "0",
            "--quantize",
            "false",
            "--run_dir",
            str(run_dir),
        ]
    )
    assert read_json(run_dir / "codec" / "report.json")["curve"][0]["perplexity"] == []
    with pytest.raises(InputError, match="has no codes"):
        train_transformer.main([*flags_of(TRANSFORMER), "--run_dir", str(run_dir)])


def test_soft_targets_train(trained: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for stage in ("text", "codec"):
        shutil.copytree(trained / stage, run_dir / stage)
    flags = [*flags_of(TRANSFORMER), "--code_temperature", "0.5", "--training_steps", "10"]
    train_transformer.main([*flags, "--run_dir", str(run_dir)])
    curve = read_json(run_dir / "codec_transformer" / "report.json")["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_a_memorised_batch_comes_back(text: Path, tmp_path: Path) -> None:
    """Encode, quantize and decode what was trained on until it was known: 99 % of tokens at least."""
    run_dir = copy_of(text, tmp_path / "run")
    rows = TextRows.open(run_dir).rows["train"][:4]
    network, quantizer, _ = parse_flags(["--hidden_size", "64", "--latent_dim", "64", "--codebook_sizes", "16", "16"])
    torch.manual_seed(0)
    codec = RQVAE(network, quantizer, 300, rows_per_step=16)
    ids, lengths = batch_of(rows, torch.device("cpu"))
    rng = np.random.default_rng(0)
    codec.quantizer.start(codec.encoder(ids, lengths).detach().flatten(0, 1), rng)
    optimizer = torch.optim.AdamW(codec.parameters(), 5e-3)
    for step in range(1, 61):
        made = codec(ids, lengths)
        optimizer.zero_grad()
        made.loss.backward()
        optimizer.step()
        codec.quantizer.after_step(made.quantized, made.latent_exists.flatten(), step, rng)
    codec.eval()
    back = codec.decode(codec.encode(ids, lengths))[:, : ids.shape[1]]
    assert ((back == ids)[ids != 0]).float().mean() >= 0.99


def parse_flags(flags: list[str]) -> tuple:
    from sidrec.pipeline.config import parse_configs

    return parse_configs(train_vae.CONFIGS, flags)


def test_a_text_is_encoded_decoded_and_completed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--run_dir", str(trained)]
    main(["codec", "encode", "--text", "the cat sat on a mat", *run])
    codes = capsys.readouterr().out.splitlines()[-1]
    codec = TextCodec.open(trained, completes=True)
    assert json.loads(codes) == codec.encode("the cat sat on a mat").tolist()
    main(["codec", "decode", "--codes", codes, *run])
    assert capsys.readouterr().out == codec.decode(codec.encode("the cat sat on a mat")) + "\n"
    complete = ["codec", "complete", "--prompt", "the cat sat", "--n_tokens", "12", "--temperature", "0", *run]
    main(complete)
    told = capsys.readouterr().out
    assert told.startswith("the cat sat")
    main([*complete, "--stream", "true"])
    assert capsys.readouterr().out == told


def test_standard_input_is_read(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat"))
    main(["codec", "encode", "--text", "-", "--run_dir", str(trained)])
    assert json.loads(capsys.readouterr().out)


def test_prompts_of_a_batch_are_completed_as_each_alone(trained: Path) -> None:
    codec = TextCodec.open(trained, completes=True)
    prompts = ["the cat sat on", "a", "its old dog saw two birds under a tree"]
    together = codec.complete(prompts, 16, Sampling())
    assert together == [codec.complete([prompt], 16, Sampling())[0] for prompt in prompts]
    for prompt, answer in zip(prompts, together, strict=True):
        assert "".join(codec.stream(prompt, 16, Sampling())) == answer
        assert len(codec.tokens(answer)) <= 17


def test_a_prompts_whole_latents_are_the_encoders_and_the_last_one_says_its_last_tokens(trained: Path) -> None:
    codec = TextCodec.open(trained, completes=True)
    prompt = "the cat sat on a mat and saw its dog"
    codes, n_tokens = codec.beginning(prompt)
    tokens = codec.tokens(prompt)
    n_whole = len(tokens) // 4
    assert n_tokens == len(tokens)
    assert torch.equal(codes[:n_whole], codec.encode(prompt)[:n_whole])


CODES = [
    ("[[1, 2]]", "latent 1 of the codes is"),
    ("[[1, 2, 32]]", "below"),
    ("[[1, 2, 3.0]]", "whole numbers"),
    ("[[1, 2, true]]", "whole numbers"),
    ("{}", "no list"),
    ("[[1, 2,", "no JSON"),
]


@pytest.mark.parametrize(("codes", "reason"), CODES)
def test_damaged_codes_are_refused(codes: str, reason: str, trained: Path) -> None:
    with pytest.raises(InputError, match=reason):
        main(["codec", "decode", "--codes", codes, "--run_dir", str(trained)])


REFUSED: list[tuple[list[str], str]] = [
    (["--compression", "3"], "every convolution halves"),
    (["--kernel_size", "3"], "even number"),
    (["--hidden_size", "30"], "multiple of"),
    (["--dropout", "1"], "share below 1"),
    (["--causal", "false", "--model_name_or_path", "gpt2"], "is causal"),
]


@pytest.mark.parametrize(("flags", "reason"), REFUSED)
def test_impossible_settings_are_refused(flags: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        train_vae.main(flags)


def test_too_large_a_batch_is_refused_before_the_first_step(text: Path, tmp_path: Path) -> None:
    run_dir = copy_of(text, tmp_path / "run")
    with pytest.raises(InputError, match="there are 277 rows of training text"):
        train_vae.main([*flags_of(CODEC), "--batch_size", "278", "--run_dir", str(run_dir)])


@pytest.mark.parametrize("run", [train_vae.main, train_transformer.main])
def test_the_stage_before_must_have_run(run: Callable[[list[str]], None], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sidrec codec text"):
        run(["--run_dir", str(tmp_path / "nothing")])

"""`sidrec export`: each file is opened by the tool that it is for, or by what reads the same format, and gives the run's own answers."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from run_dirs import N_ITEMS, assert_one_sentence, exit_code, finished_rq_run, finished_sft_run, make_run_dir, run_stage
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.files import read_json, sha256, write_json
from sidrec.serving import export, gguf_file
from sidrec.sft import train
from sidrec.tokenizer.semantic_ids import SemanticIds

EXPORT = "serving/export.py"
MISSING = "NO {} FILE IS TESTED: {} is not installed; run `" + export.INSTALL + "` to test one"


def save_llama(folder: Path, tied: bool) -> None:
    """A tiny Llama with grouped heads and a byte-level BPE, as SmolLM2 has them."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the red tea and the blue lamp", "the golden harp, the kite and the sled"] * 9, trainer
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        bos_token_id=None, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def llama_run(request, tmp_path_factory) -> Path:
    """A run directory with an SFT stage that began with a tiny Llama."""
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder / "base", request.param)
    run_dir = make_run_dir(folder / "run")
    schedule = {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "valid_users": 10}
    run_stage(train, run_dir, model_name_or_path=str(folder / "base"), learning_rate=0.001, **schedule)
    return run_dir


def run_export(run_dir: Path, *flags: str) -> int:
    return exit_code(EXPORT, "--run_dir", run_dir, *flags)


# ---- GGUF


@pytest.mark.parametrize(("weights", "tolerance"), [("float32", 2e-5), ("float16", 3e-2)])
def test_a_gguf_file_gives_the_folders_logits_and_tokens(llama_run, weights, tolerance):
    pytest.importorskip("gguf", reason=MISSING.format("GGUF", "gguf"))
    assert run_export(llama_run, "--format", "gguf", "--weights", weights, "--overwrite", "true") == 0
    made, folder = llama_run / "export" / "gguf", llama_run / "sft"
    opened = AutoModelForCausalLM.from_pretrained(made, gguf_file="model.gguf", dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(made, gguf_file="model.gguf")
    expected = AutoTokenizer.from_pretrained(folder)
    for text in (f"<history>{SemanticIds.load(llama_run).text(7)}", "the red tea, 23 lamps <a_1> and"):
        ids = expected(text, add_special_tokens=False)["input_ids"]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        with torch.no_grad():
            ours, theirs = opened(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_the_gguf_reader_finds_sid_tokens_as_user_defined_ones(llama_run):
    gguf = pytest.importorskip("gguf", reason=MISSING.format("GGUF", "gguf"))
    assert run_export(llama_run, "--format", "gguf", "--overwrite", "true") == 0
    file, folder = llama_run / "export" / "gguf" / "model.gguf", llama_run / "sft"
    reader, tokenizer = gguf.GGUFReader(file), AutoTokenizer.from_pretrained(folder)
    value = {name: field.contents() for name, field in reader.fields.items()}
    rows = read_json(folder / "config.json")["vocab_size"]
    tokens, kinds = value["tokenizer.ggml.tokens"], value["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == len(set(tokens)) == rows > len(tokenizer)
    for token, number in tokenizer.get_vocab().items():
        assert tokens[number] == token
    sid_tokens = {"<history>", *SemanticIds.load(llama_run).tokens()}
    assert {kinds[tokens.index(token)] for token in sid_tokens} == {gguf.TokenType.USER_DEFINED}
    assert kinds[tokens.index("<|endoftext|>")] == gguf.TokenType.CONTROL
    assert set(kinds[len(tokenizer) :]) == {gguf.TokenType.UNUSED}
    assert (value["llama.rope.freq_base"], value["llama.attention.head_count_kv"]) == (500.0, 2)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {types["blk.0.attn_q.weight"], types["token_embd.weight"]} == {"F16"}
    assert types["output_norm.weight"] == "F32"
    assert ("output.weight" in types) == (not read_json(folder / "config.json")["tie_word_embeddings"])
    before = sha256(file)
    assert run_export(llama_run, "--format", "gguf", "--overwrite", "true") == 0
    assert sha256(file) == before


def test_the_grammar_writes_the_catalogue_and_nothing_else(llama_run):
    pytest.importorskip("gguf", reason=MISSING.format("GGUF", "gguf"))
    assert run_export(llama_run, "--format", "gguf", "--overwrite", "true") == 0
    text = (llama_run / "export" / "gguf" / "sids.gbnf").read_text()
    rules = dict(re.fullmatch(r"(\S+) ::= (.+)", line).groups() for line in text.splitlines())

    @cache
    def language(rule: str) -> list[tuple[int, ...]]:
        rows = []
        for answer in rules[rule].split(" | "):
            token, rest = re.fullmatch(r"<\[(\d+)\]>(?: (\S+))?", answer).groups()
            rows += [(int(token), *row) for row in (language(rest) if rest else [()])]
        return rows

    recommender = Recommender.load(llama_run, "sft")
    assert sorted(language("root")) == sorted(map(tuple, recommender.renderer.item_tokens.tolist()))


def test_a_folder_that_gguf_has_no_place_for_is_refused(tmp_path_factory, tmp_path, llama_run, capsys):
    pytest.importorskip("gguf", reason=MISSING.format("GGUF", "gguf"))
    scratch = shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "qwen3")
    capsys.readouterr()
    assert run_export(scratch, "--format", "gguf") == 2
    said = capsys.readouterr().err
    assert_one_sentence(said)
    assert "'qwen3'" in said
    assert not (scratch / "export" / "gguf").exists()
    folder = shutil.copytree(llama_run / "sft", tmp_path / "stretched")
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})
    with pytest.raises(export.InputError, match="stretches its positions"):
        gguf_file.write_gguf(folder, tmp_path / "model.gguf", "float32")
    write_json(folder / "config.json", config)
    saved = read_json(folder / "tokenizer.json")
    by_words = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    write_json(folder / "tokenizer.json", saved | {"pre_tokenizer": by_words})
    with pytest.raises(export.InputError, match="no byte-level BPE"):
        gguf_file.write_gguf(folder, tmp_path / "model.gguf", "float32")


def test_how_a_tokenizer_splits_has_llama_cpps_name():
    bpe, byte_level = {"type": "BPE"}, {"type": "ByteLevel"}
    sequence = {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, byte_level]}
    assert gguf_file.split_of({"model": bpe, "pre_tokenizer": byte_level}) == "gpt-2"
    assert gguf_file.split_of({"model": bpe, "pre_tokenizer": sequence}) == "smollm"
    assert gguf_file.split_of({"model": bpe, "pre_tokenizer": None}) is None
    assert gguf_file.split_of({"model": {"type": "Unigram"}, "pre_tokenizer": byte_level}) is None


# ---- ONNX


@pytest.fixture
def random_histories() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(N_ITEMS, size=rng.integers(1, 30)) for _ in range(50)]


@pytest.mark.slow
@pytest.mark.parametrize("depth_head", ["marginal", "additive"])
def test_onnx_runtime_recommends_what_the_recommender_does(depth_head, tmp_path_factory, tmp_path, random_histories):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=MISSING.format("ONNX", package))
    onnxruntime = pytest.importorskip("onnxruntime", reason=MISSING.format("ONNX", "onnxruntime"))
    run_dir = shutil.copytree(finished_rq_run(tmp_path_factory), tmp_path / "run")
    if depth_head != "marginal":
        settings = {"architecture": "rq_transformer", "batch_items": 96, "depth_head": depth_head, "joint_levels": 1}
        run_stage(train, run_dir, overwrite="true", **settings)
    assert run_export(run_dir, "--format", "onnx") == 0
    file = run_dir / "export" / "onnx" / "model.onnx"
    before = sha256(file)
    assert run_export(run_dir, "--format", "onnx") == 0, "it is finished"
    assert sha256(file) == before
    assert b"onnx_graph.py" not in file.read_bytes(), "no path of this machine is in it"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    recommender = Recommender.load(run_dir, "sft")
    max_items = session.get_inputs()[0].shape[1]
    assert max_items == recommender.renderer.max_items
    items = np.full((len(random_histories), max_items), -1)
    for row, history in enumerate(random_histories):
        newest = history[-max_items:]
        items[row, : len(newest)] = newest
    (log_probs,) = session.run(["log_probs"], {"items": items})
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, atol=1e-4)
    alone = session.run(["log_probs"], {"items": items[7:8]})[0]
    np.testing.assert_allclose(alone[0], log_probs[7], atol=1e-5)
    expected = recommender.recommend(random_histories, 10, exclude_seen=False)
    best = np.sort(log_probs, axis=1)[:, ::-1][:, :10]
    np.testing.assert_allclose(best, expected.log_probs, atol=1e-5)
    of_theirs = np.take_along_axis(log_probs, expected.items, axis=1)
    np.testing.assert_allclose(of_theirs, best, atol=1e-5)  # the same ten, in the same order where scores differ


def test_a_language_model_is_no_onnx_graph_of_items(tmp_path_factory, tmp_path, capsys):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=MISSING.format("ONNX", package))
    run_dir = shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "run")
    capsys.readouterr()
    assert run_export(run_dir, "--format", "onnx") == 2
    said = capsys.readouterr().err
    assert_one_sentence(said)
    assert "for an RQ-Transformer" in said


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda package: None)
    with pytest.raises(export.InputError, match=r"needs the package onnx, .* run `pip install \"sidrec\[export\]\"`"):
        export.main(["--run_dir", str(tmp_path), "--format", "onnx"])

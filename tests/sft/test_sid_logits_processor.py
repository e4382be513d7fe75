"""The constraint that lies in a model's folder: brute force over the catalogue, decoding's own constraint, and the product's search."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import json
import shutil
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from run_dirs import LEVEL_SIZES, N_ITEMS, finished_sft_run
from transformers import AutoModelForCausalLM

from sidrec.decoding.generate_constraint import SidLogitsProcessor
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.trie import SidTrie
from sidrec.decoding.trie_file import save_trie

HISTORIES = [np.array([3]), np.array([7, 8, 9, 20]), np.array([41, 40]), np.array([59, 0, 13, 5, 6, 2])]


@pytest.fixture
def folder(tmp_path_factory, tmp_path) -> Path:
    return shutil.copytree(finished_sft_run(tmp_path_factory) / "sft", tmp_path / "elsewhere")


def shipped(folder: Path) -> ModuleType:
    """The module of that folder."""
    spec = importlib.util.spec_from_file_location("sid_logits_processor", folder / "sid_logits_processor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_imports_torch_and_numpy_alone(folder):
    source = (folder / "sid_logits_processor.py").read_text(encoding="utf-8")
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"__future__", "json", "collections", "functools", "pathlib", "typing", "numpy", "torch"}


def test_every_prefix_allows_what_the_catalogue_holds(folder):
    constraint, codes = shipped(folder).SidConstraint(), np.load(folder / "semantic_ids" / "codes_all.npy")
    first = constraint.first_tokens
    ranges = [range(-1, size + 1) for size in LEVEL_SIZES]
    rows = {tuple(row): item for item, row in enumerate(codes.tolist())}
    for depth in range(len(LEVEL_SIZES) + 1):
        for prefix in itertools.product(*ranges[:depth]):
            written = [code + token for code, token in zip(prefix, first, strict=False)]
            following = {row[depth] + first[depth] for row in rows if row[:depth] == prefix} if depth < 3 else set()
            assert set(constraint.allowed(written).tolist()) == (following or {constraint.eos_token})
            assert constraint.item_of(written) == rows.get(prefix)
    assert constraint.item_of([*written, 5]) == rows.get(prefix), "what comes after an item is not looked at"


def test_a_large_trie_with_wide_pointers_is_read(folder):
    """More nodes than an int16 counts, and blocks of pointers that span more than 16 bits."""
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, [3, 300, 40_000], size=(200_000, 3)), axis=0)
    sizes = [3, 300, 40_000]
    trie = SidTrie(torch.from_numpy(codes), sizes)
    save_trie(trie, folder / "semantic_ids" / "trie.safetensors")
    record = json.loads((folder / "sidrec.json").read_text())
    record["vocabulary"] |= {"first_tokens": [300, 303, 603], "level_sizes": sizes}
    (folder / "sidrec.json").write_text(json.dumps(record))
    constraint = shipped(folder).SidConstraint()
    for item in rng.integers(len(codes), size=50):
        written = (codes[item] + constraint.first_tokens).tolist()
        assert constraint.item_of(written) == item
        same = codes[(codes[:, :2] == codes[item, :2]).all(1), 2]
        assert constraint.allowed(written[:2]).tolist() == (same + 603).tolist()


def test_batches_and_beams_are_masked_as_decoding_masks_them(folder):
    module, recommender = shipped(folder), Recommender.from_folder(folder)
    vocabulary, length = recommender.renderer.vocabulary, 9
    constraint = module.SidConstraint()
    generator = torch.Generator().manual_seed(0)
    theirs = SidLogitsProcessor(recommender.trie, vocabulary, length, constraint.eos_token)
    ours = module.SidLogitsProcessor(constraint, length)
    for depth in range(4):
        prompts = torch.randint(0, 270, (40, length), generator=generator)  # they may hold anything
        items = torch.randint(0, N_ITEMS, (40,), generator=generator)
        written = recommender.renderer.tokens_of(items)[:, :depth]
        written[::7] = 5  # rows that no item begins like
        scores = torch.randn(40, 300, generator=generator).log_softmax(-1)
        rows = torch.cat([prompts, written], dim=1)
        masked, expected = ours(rows, scores), theirs(rows, scores)
        assert torch.equal(masked > -torch.inf, expected > -torch.inf)
        torch.testing.assert_close(masked, expected.log_softmax(-1))


@pytest.mark.parametrize("normaliser", ["children", "level", "full"])
def test_generate_ranks_the_catalogue_as_the_product_does(folder, normaliser):
    record = json.loads((folder / "sidrec.json").read_text())
    (folder / "sidrec.json").write_text(json.dumps(record | {"normaliser": normaliser}))
    recommender = Recommender.from_folder(folder)
    expected = recommender.recommend(HISTORIES, N_ITEMS, exclude_seen=False)
    constraint = shipped(folder).SidConstraint()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    input_ids, attention_mask = recommender.renderer.batch(HISTORIES)  # left-padded, of different lengths
    length = input_ids.shape[1]
    search = constraint.beam_search(N_ITEMS, length) | {"return_dict_in_generate": True, "output_scores": True}
    output = model.generate(input_ids, attention_mask=attention_mask, **search)
    items = [constraint.item_of(tokens) for tokens in output.sequences[:, length:].tolist()]
    log_probs = (output.sequences_scores * constraint.n_levels).view(len(HISTORIES), -1).numpy()
    np.testing.assert_allclose(log_probs, expected.log_probs, atol=2e-4)
    for row, (mine, theirs) in enumerate(zip(np.array(items).reshape(len(HISTORIES), -1), expected.items, strict=True)):
        assert sorted(mine) == list(range(N_ITEMS))
        by_item = dict(zip(theirs.tolist(), expected.log_probs[row].tolist(), strict=True))
        np.testing.assert_allclose([by_item[item] for item in mine.tolist()], log_probs[row], atol=2e-4)


def test_vllm_calls_it_for_one_request(folder):
    """As AdapterLogitsProcessor of vLLM 0.10.1 and later does: three arguments, the lists handed over once and filled from step to step."""
    constraint = shipped(folder).SidConstraint()
    assert len(inspect.signature(constraint).parameters) == 3
    prompt, written = [999, constraint.first_tokens[0], 3], []
    step = partial(constraint, prompt, written)
    generator = torch.Generator().manual_seed(1)
    for _ in range(constraint.n_levels):
        logits = torch.randn(300, generator=generator)
        masked = step(logits.clone())
        allowed = constraint.allowed(written)
        assert (masked > -torch.inf).nonzero().flatten().tolist() == sorted(allowed.tolist())
        torch.testing.assert_close(masked[allowed], logits[allowed].log_softmax(0))
        written.append(int(masked.argmax()))
    assert constraint.item_of(written) is not None
    assert int(step(torch.randn(300)).argmax()) == constraint.eos_token


def test_sglang_calls_it_for_a_batch(folder):
    """As CustomLogitProcessor of SGLang: the rows of several requests, each with its own parameters, which hold the request."""
    module = shipped(folder)
    constraint, logits = module.SidConstraint(), torch.randn(4, 300)
    token = int(constraint.allowed([])[0])
    requests = [SimpleNamespace(origin_input_ids=[token] * n, output_ids=[token] * (n % 2)) for n in range(3)]
    parameters = [{"__req__": request} for request in requests] + [None]
    masked = module.mask_requests(logits.clone(), parameters)
    for row, request in enumerate(requests):
        assert torch.equal(masked[row], constraint.masked(logits[row], request.output_ids))
    assert torch.equal(masked[3], logits[3]), "a request without parameters is not touched"
    assert torch.equal(module.mask_requests(logits.clone(), None), logits)


@pytest.mark.parametrize("damage", ["eos", "format", "trie"])
def test_what_cannot_be_read_is_named(folder, damage):
    if damage == "eos":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    elif damage == "format":
        record = json.loads((folder / "sidrec.json").read_text())
        (folder / "sidrec.json").write_text(json.dumps(record | {"format_version": 99}))
    else:
        shutil.copyfile(folder / "model.safetensors", folder / "semantic_ids" / "trie.safetensors")
    with pytest.raises(ValueError, match={"eos": "eos_token", "format": "format", "trie": "no trie file"}[damage]):
        shipped(folder).SidConstraint()

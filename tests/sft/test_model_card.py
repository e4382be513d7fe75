"""The card of a trained model says what the files say, its examples run, and evaluation fills in the test results."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from run_dirs import N_ITEMS, finished_rq_run, finished_sft_run, weights
from transformers import AutoModelForCausalLM

from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.evaluation import evaluate
from sidrec.evaluation.model_cards import NOT_MEASURED, fill_cards
from sidrec.pipeline import provenance
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import Stage, require_finished, write_manifest
from sidrec.sft import model_card
from sidrec.sft.base_model import BaseModel
from sidrec.sft.model_card import header, write_model_card
from sidrec.tokenizer.semantic_ids import SemanticIds


@pytest.fixture
def run_dir(tmp_path_factory, tmp_path) -> Path:
    return shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "run")


def card_of(run_dir: Path, stage: str = "sft") -> str:
    return (run_dir / stage / "README.md").read_text(encoding="utf-8")


def examples_of(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)


def run_alone(example: str, folder: Path) -> list[str]:
    """The lines that a card's example prints in a process of its own, in the model's folder, where sidrec cannot be imported."""
    without = f"import sys\nsys.modules['sidrec'] = None\nexec({example!r})"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", without], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_transformers_alone_writes_items_by_the_cards_example(run_dir, tmp_path):
    folder = shutil.copytree(run_dir / "sft", tmp_path / "elsewhere")
    example, _ = examples_of(card_of(run_dir))
    sids, recommender = SemanticIds.load(run_dir), Recommender.load(run_dir, "sft")
    lists = recommender.recommend([np.array([0, 1])], 10, exclude_seen=False, beams=10)
    shutil.rmtree(run_dir)
    lines = run_alone(example, folder)
    items = [int(line.split()[0]) for line in lines]
    assert [line.split()[1] for line in lines] == [sids.text(item) for item in items]
    assert items == lists.items[0].tolist()


def test_sidrecs_example_runs_in_the_models_folder_alone(run_dir, tmp_path, monkeypatch):
    folder = shutil.copytree(run_dir / "sft", tmp_path / "elsewhere")
    _, example = examples_of(card_of(run_dir))
    shutil.rmtree(run_dir)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(example, names)
    items = names["lists"].items[0]
    assert len(set(items) - {-1, 0, 1}) == 10


def test_an_rq_transformer_has_no_constraint_beside_it(tmp_path_factory, monkeypatch, capsys):
    run_dir = finished_rq_run(tmp_path_factory)
    example, _ = examples_of(card_of(run_dir))
    assert not (run_dir / "sft" / "sid_logits_processor.py").exists()
    monkeypatch.chdir(run_dir / "sft")
    capsys.readouterr()
    exec(example, {})
    assert re.fullmatch(r"<a_\d>", capsys.readouterr().out.strip()), (
        "after a whole item comes the first code of the next"
    )


def test_the_card_says_what_the_model_is_for_and_whose_licences_hold(run_dir):
    card = card_of(run_dir)
    assert "## Intended use and limits" in card
    assert "one catalogue of 60 items" in card
    assert "reads the 12 newest items" in card
    assert "The weights were made from scratch" in card
    assert "The data (rings) have the terms of whoever publishes them" in card


def test_the_card_says_what_the_files_say(run_dir):
    card, sids = ModelCard(card_of(run_dir)), SemanticIds.load(run_dir)
    assert card.data.library_name == "transformers"
    assert {"recommendation", "semantic-ids", "sft"} <= set(card.data.tags)
    assert card.data.license is None
    assert card.data.base_model is None
    parameters = sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(run_dir / "sft").parameters())
    assert f"{parameters / 1e6:.2f}M parameters, a Qwen3 made from scratch" in card.text
    assert f"`{sids.text(0)}` for the first" in card.text
    assert f"| semantic IDs | {' × '.join(map(str, sids.level_sizes))} codes" in card.text
    assert sids.digest in card.text
    for row in json.loads((run_dir / "sft" / "valid.json").read_text()):
        assert f"| {row['step']} | {row['eval_recall@10']:.4f} | {row['eval_ndcg@10']:.4f} |" in card.text
    manifest = json.loads((run_dir / "sft" / "manifest.json").read_text())
    for name, value in manifest["fingerprint"].items():
        assert f"{name}:" in card.text
        if isinstance(value, int | str):
            assert str(value) in card.text
    assert f"transformers {manifest['packages']['transformers']}" in card.text
    assert all(digest in card.text for digest in manifest["inputs"].values())


def test_the_same_files_give_the_same_card(run_dir):
    before = card_of(run_dir)
    write_model_card(run_dir / "sft")
    assert card_of(run_dir) == before


def test_the_header_names_a_public_model_and_no_local_folder(tmp_path):
    assert "base_model: Qwen/Qwen3-0.6B" in header("Qwen/Qwen3-0.6B", "rl")
    assert "base_model" not in header(str(tmp_path), "rl")
    assert "- rl" in header(None, "rl")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in header("smollm2-135m", "sft")
    (tmp_path / "README.md").write_text("---\nbase_model: Qwen/Qwen3-0.6B\nlicense: apache-2.0\n---\n")
    assert "base_model: Qwen/Qwen3-0.6B" in header(str(tmp_path), "rl")


def test_the_base_model_stands_with_its_licence(tmp_path):
    assert BaseModel.of("Qwen/Qwen3-0.6B").in_words() == "`Qwen/Qwen3-0.6B` (licence: see its publisher)"
    packaged = BaseModel.of("smollm2-135m").in_words()
    assert packaged.startswith("`HuggingFaceTB/SmolLM2-135M-Instruct` (licence apache-2.0; rounded to 4 bits")
    assert str(tmp_path) not in BaseModel.of(str(tmp_path)).in_words()
    (tmp_path / "README.md").write_text("---\nlicense: [a, b]\nbase_model: [x/y]\n---\n")
    assert BaseModel.of(str(tmp_path)) == BaseModel(None, None)
    (tmp_path / "README.md").write_text("no header at all")
    assert BaseModel.of(str(tmp_path)) == BaseModel(None, None)


def test_the_card_holds_no_local_path(run_dir, tmp_path):
    local = tmp_path / "somewhere" / "model"
    local.mkdir(parents=True)
    (local / "README.md").write_text("---\nbase_model: Qwen/Qwen3-0.6B\nlicense: apache-2.0\n---\n")
    manifest = json.loads((run_dir / "sft" / "manifest.json").read_text())
    manifest["fingerprint"]["model_name_or_path"] = str(local)
    write_manifest(run_dir / "sft" / "manifest.json", manifest)
    write_model_card(run_dir / "sft")
    assert str(tmp_path) not in card_of(run_dir)
    assert "`Qwen/Qwen3-0.6B` (licence apache-2.0) with the tokens of semantic IDs" in card_of(run_dir)


def test_the_rl_card_names_the_model_that_sft_began_with(run_dir):
    shutil.copytree(run_dir / "sft", run_dir / "rl")
    manifest = json.loads((run_dir / "sft" / "manifest.json").read_text())
    manifest["fingerprint"]["model_name_or_path"] = "Qwen/Qwen3-0.6B"
    write_manifest(run_dir / "sft" / "manifest.json", manifest)
    write_model_card(run_dir / "rl")
    assert "base_model: Qwen/Qwen3-0.6B" in card_of(run_dir, "rl")
    assert "GRPO with recall rewards" in card_of(run_dir, "rl")


def test_the_commit_is_that_of_this_programs_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert "by the code of sidrec 0.1" in model_card.training_part({"packages": {}, "inputs": {}, "fingerprint": {}})
    monkeypatch.setattr(model_card, "code_version", lambda: "commit 1234")
    assert "by the code of commit 1234" in model_card.training_part({"packages": {}, "inputs": {}, "fingerprint": {}})


def test_evaluation_fills_in_the_test_results(run_dir):
    assert NOT_MEASURED in card_of(run_dir)
    before, model = card_of(run_dir), weights(run_dir / "sft")
    for _ in range(2):  # the second time there is nothing to measure
        evaluate.main(["--run_dir", str(run_dir), "--models", "sft", "popularity"])
        card, table = card_of(run_dir), (run_dir / "evaluation" / "table.md").read_text(encoding="utf-8")
        assert table.strip() in card
        assert card.replace(table.strip(), NOT_MEASURED) == before
    assert weights(run_dir / "sft") == model
    require_finished(run_dir, "sft", "")
    assert Stage(run_dir, "sft", *_identity(run_dir)).is_finished(), "the card is no part of what a stage is checked by"


def _identity(run_dir: Path) -> tuple[dict, tuple[Path, ...]]:
    manifest = json.loads((run_dir / "sft" / "manifest.json").read_text())
    return manifest["fingerprint"], tuple(run_dir / path for path in manifest["inputs"])


def test_a_card_without_a_place_for_results_is_left_alone(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "README.md").write_text("the user's own")
    fill_cards(tmp_path, ["sft", "rl", "popularity"], "table")
    assert (tmp_path / "sft" / "README.md").read_text() == "the user's own"
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]


def test_the_saved_trie_is_the_one_that_the_codes_give(run_dir):
    saved, sids = Recommender.load(run_dir, "sft"), SemanticIds.load(run_dir)
    built = Recommender.build(saved.model, Renderer.load(run_dir / "sft", sids), sids)
    assert saved.trie.sorted_codes().equal(built.trie.sorted_codes())
    histories = [np.array([0, 5]), np.array([N_ITEMS - 1])]
    lists, expected = (recommender.recommend(histories, 10, exclude_seen=True) for recommender in (saved, built))
    np.testing.assert_array_equal(lists.items, expected.items)
    np.testing.assert_array_equal(lists.log_probs, expected.log_probs)
    (run_dir / "sft" / "semantic_ids" / "trie.safetensors").unlink()
    with pytest.raises(InputError, match=r"trie\.safetensors is not the file"):
        Recommender.load(run_dir, "sft")

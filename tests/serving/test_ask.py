"""`sidrec ask`: the items that the model most probably writes after the question, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from run_dirs import exit_code, make_run_dir, run_stage, save_pretrained
from transformers import AutoTokenizer

from sidrec.decoding.answers import answers
from sidrec.decoding.recommender import Recommender
from sidrec.sft import train

QUESTION = "word3 word7 word1"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask")
    save_pretrained(folder / "pretrained", "Llama", tied=True)
    run = make_run_dir(folder / "run")
    run_stage(train, run, max_steps=2, model_name_or_path=folder / "pretrained", question_to_item=1)
    return run


def test_it_shows_the_models_answers_to_the_question(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("serving/ask.py", QUESTION, "--run_dir", run_dir, "--k", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    recommender = Recommender.load(run_dir, "sft")
    prompt = AutoTokenizer.from_pretrained(run_dir / "sft")(QUESTION, add_special_tokens=False)["input_ids"]
    best = answers(recommender, [prompt], 4)
    shown = [re.search(r"^\s*(\d)\s+.*?\s(i\d+)\s+(<a_\d+>\S*)", line) for line in lines]
    assert [(int(row[1]), row[2]) for row in shown if row] == [
        (rank, f"i{item}") for rank, item in enumerate(best.items[0], start=1)
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([" "], "the question is empty"),
        ([], "--question is missing"),
        (["x", "--k", "0"], "k=0 items cannot be recommended"),
        (["x", "--model", "rl"], "rl"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    run_dir: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert exit_code("serving/ask.py", *words, "--run_dir", run_dir) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_model_that_learnt_no_questions_is_not_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run_dir(tmp_path / "run")
    assert exit_code("serving/ask.py", "x", "--run_dir", run) == 2
    assert "has no trained model" in capsys.readouterr().err
    run_stage(train, run, max_steps=1)
    assert exit_code("serving/ask.py", "x", "--run_dir", run) == 2
    assert "has learnt no questions" in capsys.readouterr().err

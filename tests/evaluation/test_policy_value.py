"""`sidrec off-policy` on lists that a small run's model drew: what it says against the truth, and logs that are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from run_dirs import assert_one_sentence, exit_code, finished_sft_run

from sidrec.data.dataset import Dataset
from sidrec.decoding.plackett_luce import draw_list
from sidrec.decoding.recommender import Recommender
from sidrec.evaluation import policy_value
from sidrec.evaluation.served_lists import COLUMNS, ServedLists
from sidrec.pipeline.errors import InputError

COMMAND, K, TEMPERATURE = "evaluation/policy_value.py", 3, 2.0


class Service:
    """Draws lists from a run's model and logs them; a red item is clicked most often."""

    def __init__(self, run_dir: Path) -> None:
        self.dataset, self.recommender = Dataset.load(run_dir), Recommender.load(run_dir, "sft")
        self.cases = self.dataset.cases("valid")
        self.scores = self.recommender.leaf_log_probs(self.cases.histories).clone()

    def draw(self, temperature: float, times: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Item indices, propensities and chances of a click, all [cases · times, K]; every second case may see items again."""
        scores, trie = self.scores.clone() / temperature, self.recommender.trie
        for row, history in enumerate(self.cases.histories):
            if row % 2:
                scores[row, trie.leaf_of_item(torch.from_numpy(history))] = -torch.inf
        leaves, propensities = draw_list(scores.repeat(times, 1), K, torch.Generator().manual_seed(seed))
        items = trie.item_of_leaf[leaves].numpy()
        return items, propensities.numpy(), np.where(items < 10, 0.8, 0.1) / np.arange(1, K + 1)

    def rows(self, temperature: float, times: int, seed: int = 0) -> list[dict[str, Any]]:
        items, propensities, chances = self.draw(temperature, times, seed)
        clicks = np.random.default_rng(seed).random(chances.shape) < chances
        ids, n_cases = self.dataset.items["item_id"].to_list(), len(self.cases)
        return [
            {
                "user_id": f"{self.cases.user_ids[row % n_cases]}, day {row // n_cases}",
                "history": [ids[item] for item in self.cases.histories[row % n_cases]],
                "exclude_seen": bool(row % n_cases % 2),
                "items": [ids[item] for item in items[row]],
                "propensities": propensities[row].tolist(),
                "rewards": clicks[row].astype(float).tolist(),
            }
            for row in range(len(items))
        ]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_sft_run(tmp_path_factory)


@pytest.fixture(scope="module")
def service(run_dir: Path) -> Service:
    return Service(run_dir)


def as_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def figures(run_dir: Path, log: Path, *flags: str) -> dict[str, Any]:
    out = log.with_name("figures.json")
    arguments = ["--log", str(log), "--run_dir", str(run_dir), "--model", "sft", "--write", str(out), *flags]
    policy_value.main(arguments)
    return json.loads(out.read_text(encoding="utf-8"))


def test_the_policy_that_drew_the_lists_earns_what_they_earned(service: Service, run_dir: Path, tmp_path: Path) -> None:
    rows = service.rows(TEMPERATURE, 3)
    told = figures(run_dir, as_json_lines(tmp_path / "log.jsonl", rows), "--temperature", str(TEMPERATURE))
    mean = np.mean([sum(row["rewards"]) for row in rows])
    for name in ("logged", "ips", "snips"):
        assert told["estimates"][name]["value"] == pytest.approx(mean, rel=1e-4)
    for slot in told["slots"]:
        assert slot["effective_sample_size"] == pytest.approx(len(rows), rel=1e-4)
        assert slot["largest_weight"] == pytest.approx(1, abs=1e-3)
    assert told["warnings"] == []


def test_another_policy_is_judged_as_its_own_lists_would_be(
    service: Service, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The value at temperature 1, from lists drawn at 2; the truth is the mean chance of many lists drawn at 1."""
    truth = service.draw(1.0, 300, seed=9)[2].sum(1).mean()
    pl.DataFrame(service.rows(TEMPERATURE, 150)).write_parquet(tmp_path / "log.parquet")
    told = figures(run_dir, tmp_path / "log.parquet")
    by_name = told["estimates"]
    assert not by_name["logged"]["low"] <= truth <= by_name["logged"]["high"]
    for name in ("ips", "snips", "dr"):
        assert abs(by_name[name]["value"] - truth) < 3 * by_name[name]["standard_error"]
    assert by_name["dr"]["standard_error"] < by_name["ips"]["standard_error"]
    assert np.mean([slot["mean_weight"] for slot in told["slots"]]) == pytest.approx(1, abs=0.1)
    printed = capsys.readouterr().out
    assert f"doubly robust{by_name['dr']['value']:>11.4f}" in printed
    assert "off-policy: sft of " in printed


def test_a_clip_is_told_and_few_lists_are_warned_of(
    service: Service, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = as_json_lines(tmp_path / "log.jsonl", service.rows(TEMPERATURE, 1))
    told = figures(run_dir, log, "--clip", "1.5", "--temperature", "0.5")
    assert 0 < told["clipped"] < 1
    assert max(slot["largest_weight"] for slot in told["slots"]) > 1.5
    printed = capsys.readouterr().out
    assert f"weights above 1.5 are cut to it, in {told['clipped']:.1%} of the lists" in printed
    assert "too few to trust these estimates" in printed
    assert figures(run_dir, log, "--clip", "1.5", "--temperature", "0.5") == told


def test_the_two_formats_and_numbers_as_ids_are_read_alike(tmp_path: Path) -> None:
    rows = [
        {"user_id": 7, "history": [3], "exclude_seen": True, "items": [1, 2], "propensities": [0.5, 1], "rewards": [1, 0]},
        {"user_id": 8, "history": [1, 1], "exclude_seen": False, "items": [1], "propensities": [0.25], "rewards": [2.5]},
    ]  # fmt: skip
    pl.DataFrame(rows, strict=False).write_parquet(tmp_path / "log.PARQUET")
    for path in (as_json_lines(tmp_path / "log.jsonl", rows), tmp_path / "log.PARQUET"):
        lists = ServedLists.read(path, ["0", "1", "2", "3"])
        assert lists.users.tolist() == ["7", "8"]
        assert [history.tolist() for history in lists.histories] == [[3], [1, 1]]
        assert lists.exclude_seen.tolist() == [True, False]
        assert lists.items.tolist() == [[1, 2], [1, -1]]
        assert lists.propensities.tolist() == [[0.5, 1], [0.25, 1]]
        assert lists.rewards.tolist() == [[1, 0], [2.5, 0]]
        assert lists.shown.tolist() == [[True, True], [True, False]]


def changed(**columns: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """The rows, with other values in the second one; None: the column is left out of it."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        second = {name: value for name, value in (rows[1] | columns).items() if value is not None}
        return [rows[0], second, *rows[2:]]

    return change


DAMAGED = [
    *((changed(**{name: None}), f"line 2 has no '{name}'") for name in COLUMNS),
    (changed(propensities=[0.5, 0.0, 0.5]), "line 2: the propensity of slot 2 is 0.0"),
    (changed(propensities=[0.5, 0.5, 1.25]), "line 2: the propensity of slot 3 is 1.25"),
    (changed(propensities=[-0.5, 0.5, 0.25]), "line 2: the propensity of slot 1 is -0.5"),
    (changed(propensities=[0.5, float("nan"), 0.5]), "line 2: propensities is [0.5, nan, 0.5]; it must be a list of numbers"),
    (changed(propensities=0.5), "line 2: propensities is 0.5; it must be a list of numbers"),
    (changed(propensities=[0.5, 0.5]), "line 2: propensities has 2 numbers for 3 items"),
    (changed(rewards=[1]), "line 2: rewards has 1 numbers for 3 items"),
    (changed(rewards=["yes", "no", "no"]), "line 2: rewards is ['yes', 'no', 'no']"),
    (changed(rewards=[10**400, 0, 0]), "line 2: rewards is [1000"),
    (changed(rewards=[float("inf"), 0, 0]), "line 2: rewards is [inf, 0, 0]"),
    (changed(items=["i1", "i2", "i999"]), "line 2: items holds the item 'i999', which the run's catalogue lacks"),
    (changed(items=["i55", "i56", "i55"]), "line 2: items holds an item twice"),
    (changed(items=[["i1"], "i2", "i3"]), "line 2: items is [['i1'], 'i2', 'i3']; it must be a list of item ids"),
    (changed(items=[], propensities=[], rewards=[]), "line 2: items is []; it must be a list of item ids, one at least"),
    (changed(history=["i999"]), "line 2: history holds the item 'i999'"),
    (changed(history=[]), "line 2: history is []"),
    (changed(history=["i1", "i2"], items=["i3", "i2", "i4"]), "line 2: items holds 'i2', an item of the history"),
    (changed(exclude_seen=1), "line 2: exclude_seen is 1; it must be true or false"),
    (changed(user_id=1.5), "line 2: user_id is 1.5"),
    (lambda rows: rows[:1], "has lists of one user only"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), DAMAGED, ids=[words for _, words in DAMAGED])
def test_a_damaged_log_is_one_sentence(
    change: Any, words: str, service: Service, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = as_json_lines(tmp_path / "log.jsonl", change(service.rows(TEMPERATURE, 1)))
    assert exit_code(COMMAND, "--log", log, "--run_dir", run_dir, "--model", "sft") == 2
    said = capsys.readouterr().err
    assert_one_sentence(said)
    assert words in said


def test_a_file_that_is_none_is_one_sentence(
    service: Service, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pl.DataFrame(service.rows(TEMPERATURE, 1))
    rows.drop("rewards").write_parquet(tmp_path / "short.parquet")
    rows.with_columns(rewards=pl.lit("1 0 0")).write_parquet(tmp_path / "text.parquet")
    rows.head(0).write_parquet(tmp_path / "none.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "text.parquet").read_bytes()[:-9])
    (tmp_path / "blank.jsonl").write_text("\n\n", encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text('{"user_id": "u1", \n', encoding="utf-8")
    (tmp_path / "log.csv").write_text("user_id\nu1\n", encoding="utf-8")
    for name, words in (
        ("short.parquet", "has no column 'rewards'"),
        ("text.parquet", "row 1: rewards is '1 0 0'"),
        ("none.parquet", "no rows"),
        ("cut.parquet", "cannot be read as parquet"),
        ("blank.jsonl", "holds no lists"),
        ("broken.jsonl", "line 1 is neither JSON"),
        ("log.csv", "is neither .parquet nor .jsonl nor .jsonl.gz"),
        ("absent.jsonl", "does not exist"),
    ):
        assert exit_code(COMMAND, "--log", tmp_path / name, "--run_dir", run_dir, "--model", "sft") == 2
        said = capsys.readouterr().err
        assert_one_sentence(said)
        assert words in said


def test_wrong_settings_and_a_model_that_is_not_there_are_one_sentence(run_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for flags, words in (
        (["--temperature", "0"], "temperature is 0.0; it must be above 0"),
        (["--clip", "-1"], "clip is -1.0; it must be above 0"),
        (["--model", "item_knn"], "must be sft or rl"),
        (["--run_dir", str(tmp_path)], "holds no finished 'data' stage"),
    ):
        with pytest.raises(InputError, match=words):
            policy_value.main(["--run_dir", str(run_dir), "--log", str(log), *flags])


def test_a_policy_that_would_serve_none_of_the_lists_is_refused(
    service: Service, run_dir: Path, tmp_path: Path
) -> None:
    """At a temperature near 0 all but the best item have no probability in float64."""
    worst = service.scores.argmin(1)
    items = service.recommender.trie.item_of_leaf[worst].tolist()
    rows = [
        {
            "user_id": user,
            "history": [f"i{item}" for item in history],
            "exclude_seen": False,
            "items": [f"i{item}"],
            "propensities": [0.5],
            "rewards": [1],
        }
        for user, history, item in zip(service.cases.user_ids, service.cases.histories, items, strict=True)
    ]
    with pytest.raises(InputError, match="would serve none of the lists"):
        figures(run_dir, as_json_lines(tmp_path / "log.jsonl", rows), "--temperature", "0.0001")

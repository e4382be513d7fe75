"""The benchmark of sizes: shares of users, the loss that is compared, and the laws that are fitted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_dirs import N_ITEMS, N_USERS, small_dataset

from benchmarks import our_models, scaling
from benchmarks.harness import name_of
from benchmarks.scaling import CONFIG, SIZES, laws, measured, with_users
from sidrec.data.dataset import Dataset
from sidrec.pipeline.stage import Stage


def counted() -> Dataset:
    dataset = small_dataset()
    dataset.info["counts"] = {"items": N_ITEMS, "users": N_USERS, "train": 0, "valid": N_USERS, "test": N_USERS}
    return dataset


def test_shares_of_users_are_nested_and_keep_the_catalogue(tmp_path: Path) -> None:
    users = []
    for share in (0.25, 0.5, 1.0):
        with_users(counted(), share, tmp_path / str(share))
        part = Dataset.load(tmp_path / str(share))
        users.append(set(part.interactions["user_id"]))
        assert part.n_items == N_ITEMS
        assert part.info["counts"]["users"] == len(users[-1]) == share * N_USERS
        assert part.info["counts"]["train"] == sum(map(len, part.train_sequences))
        assert len(part.cases("valid")) == len(users[-1])
    assert users[0] < users[1] < users[2] == set(small_dataset().interactions["user_id"])


def test_a_law_is_the_line_through_the_logarithms() -> None:
    line = {"parameters": 1000, "clusters": 64, "users": 1.0, "loss": 3.0}
    lines = [line | {"changed": CONFIG}]
    lines += [line | {"changed": "users", "users": share, "loss": 3 * share**-0.25} for share in (0.125, 0.5)]
    lines += [line | {"changed": "width", "parameters": n, "loss": loss} for n, loss in ((100, 4.0), (10_000, 2.9))]
    lines += [line | {"changed": "clusters", "clusters": n, "loss": 3 * (n / 64) ** 0.1} for n in (4, 256)]
    fitted = laws(lines)
    assert fitted["users"] == {"exponent": 0.25, "a": 3.0, "r2": 1.0}
    assert (fitted["clusters"]["exponent"], fitted["clusters"]["r2"]) == (-0.1, 1.0)
    assert 0 < fitted["parameters"]["r2"] < 1


def test_the_loss_is_the_mean_over_the_cases() -> None:
    cases = counted().cases("valid")
    model = torch.nn.Linear(3, 4)

    def log_probs_of(histories: list[np.ndarray], items: np.ndarray) -> np.ndarray:
        assert len(histories) == len(items) == N_USERS
        return -np.arange(N_USERS, dtype=np.float32)

    figures = measured(
        SimpleNamespace(model=model, log_probs_of=log_probs_of, trie=SimpleNamespace(level_sizes=[8, 9])), cases
    )  # type: ignore[arg-type]
    assert figures == {"parameters": 16, "clusters": 8, "loss": (N_USERS - 1) / 2}


def test_every_size_is_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run_stage(command: list[str], run_dir: Path, threads: int) -> float:
        if name_of(command) == "prepare":
            stage = Stage(run_dir, "data", {})
            if not stage.is_finished():
                with stage.building() as folder:
                    counted().save(folder)
        else:
            ran.append((run_dir.name, name_of(command)))
        return 1.0

    monkeypatch.setattr(our_models, "run_stage", run_stage)
    monkeypatch.setattr(scaling, "run_stage", run_stage)
    monkeypatch.setattr(scaling.Recommender, "load", lambda run_dir, stage: run_dir)
    monkeypatch.setattr(
        scaling,
        "measured",
        lambda run_dir, cases: {
            "parameters": len(str(run_dir)),
            "clusters": len(run_dir.name),
            "loss": 5.0 + len(cases) + len(str(run_dir)),
        },
    )
    flags = ["--dataset", "ml-100k", "--work_dir", str(tmp_path), "--seeds", "0"]
    scaling.main(flags)
    assert len(ran) == 2 * len(SIZES) == 2 * len(set(SIZES))
    scaling.main(flags)
    assert len(ran) == 2 * len(SIZES)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures["laws"]) == {"parameters", "clusters", "users"}
    assert all(row["loss"] == 5.0 + N_USERS + row["parameters"] for row in figures["rows"])

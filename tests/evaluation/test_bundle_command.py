"""The command at the end of an evaluation: what is best on valid decides it, and the code that runs it takes it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sidrec.evaluation.bundle_command import bundle_command
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.files import write_json
from sidrec.serving.make_bundle import BundleConfig


def evaluated(folder: Path, recalls: dict[str, float]) -> Path:
    """An evaluation with these Recall@10 on valid, and the reverse order on test."""
    folder.mkdir(parents=True)
    splits = {
        name: {split: {"masked": {"recall@10": sign * recall}} for split, sign in (("valid", 1), ("test", -1))}
        for name, recall in recalls.items()
    }
    write_json(folder / "metrics.json", splits)
    write_json(folder / "comparison.json", {"models": list(recalls)})
    return folder


@pytest.mark.parametrize(
    ("recalls", "models", "bundled", "flags"),
    [
        ({"sft": 0.2, "rl": 0.3, "popularity": 0.1}, None, "rl", []),
        ({"sft": 0.2, "rl": 0.2, "popularity": 0.1}, None, "sft", []),
        ({"sft": 0.2, "popularity": 0.3}, ["sft", "popularity", "sft_blend"], "sft_blend", []),
        ({"sft": 0.2, "rl": 0.25, "slit": 0.3}, ["sft", "rl", "slit", "rl_blend"], "rl_blend", ["slit"]),
        ({"sft": 0.2, "sft_blend": 0.25, "slit": 0.3}, None, "sft_blend", []),
        ({"sft": 0.2, "sft_blend": 0.19, "slit": 0.3}, None, "sft", []),
    ],
)
def test_it_makes_what_is_best_on_valid(
    recalls: dict[str, float], models: list[str] | None, bundled: str, flags: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "my run"
    said = bundle_command(evaluated(run_dir / "evaluation", recalls))
    assert said is not None
    assert max(recalls, key=recalls.__getitem__) in said[0] or bundled == "sft"
    *evaluation, (_, *words) = [shlex.split(part) for part in said[1].split(" && ")]
    assert words[0] == "bundle"
    config = parse_config(BundleConfig, words[1:])
    assert (config.run_dir, config.model) == (run_dir, bundled)
    if models is None:
        assert evaluation == []
    else:
        asked = parse_config(EvaluateConfig, evaluation[0][2:])
        assert (asked.run_dir, set(asked.models), asked.overwrite) == (run_dir, set(models), True)
        assert asked.blend_with == (flags or ["item_knn"])


def test_without_a_model_of_ours_nothing_is_said(tmp_path: Path) -> None:
    assert bundle_command(evaluated(tmp_path / "evaluation", {"slit": 0.3})) is None

"""The settings that follow from the size of the data, where nobody names them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sidrec.data import prepare
from sidrec.pipeline.config import parse_configs
from sidrec.sft import advice
from sidrec.sft import recipe as recipe_module
from sidrec.sft.recipe import BY_DENSITY, FOR_ALL, OF_DROPOUT, TOGETHER, recipe, settings_by_size
from sidrec.sft.settings import CONFIGS, REFUSED

ROOT = Path(__file__).resolve().parents[2]
SETS = {
    "amazon-beauty": (12_101, 153_776),
    "ml-100k": (1_682, 98_114),
    "ml-1m": (3_416, 987_531),
}  # items, training interactions


def data_folder(run_dir: Path, n_items: int, train: int) -> Path:
    (run_dir / "data").mkdir(parents=True)
    (run_dir / "data" / "dataset.json").write_text(json.dumps({"counts": {"items": n_items, "train": train}}))
    return run_dir


def read(run_dir: Path, *flags: str) -> dict[str, object]:
    arguments = ["--run_dir", str(run_dir), *flags]
    configs = parse_configs(CONFIGS, arguments, stage="sft", refused=REFUSED, suited=settings_by_size)
    return {name: value for config in configs for name, value in vars(config).items()}


def test_the_sets_it_was_chosen_on_have_one_row_each() -> None:
    rows = [recipe(*size) for size in SETS.values()]
    assert [row["dropout"] for row in rows] == [0.5, 0.5, 0.2]
    assert [row["num_train_epochs"] for row in rows] == [30, 24, 20]
    assert [row["valid_users"] for row in rows] == [24_791, 30_000, 30_000]  # of Beauty's 22,363: all
    assert [row["depth_head"] for row in rows] == ["marginal"] * 3
    assert [recipe(n, 1_000_000)["depth_head"] for n in (250_000, 250_001)] == ["marginal", "additive"]


@pytest.mark.parametrize("name", [*SETS, "own"])
def test_a_config_says_nothing_that_the_recipe_says(name: str) -> None:
    text = (ROOT / "configs" / "sft" / f"{name}.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"^(\w+):", text, re.MULTILINE)) == {"run_dir", "architecture"}


def test_the_stage_fills_in_what_nobody_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = data_folder(tmp_path, 1000, 10_000)
    settings = read(run_dir)
    for name, value in recipe(1000, 10_000).items():
        assert settings[name] == value, name
    assert "settings: num_hidden_layers 1, num_train_epochs 30, dropout 0.5" in capsys.readouterr().out


def test_flags_win_and_take_what_belongs_together_with_them(tmp_path: Path) -> None:
    run_dir = data_folder(tmp_path, 1000, 10_000)
    plain = {field.name: field.default for kind in CONFIGS for field in kind.__dataclass_fields__.values()}
    settings = read(run_dir, "--eval_strategy", "epoch", "--dropout", "0.3", "--lr_scheduler_type", "constant")
    assert settings["dropout"] == 0.3
    assert settings["item_dropout"] == 0.25
    assert (settings["save_strategy"], settings["eval_steps"]) == ("epoch", plain["eval_steps"])
    assert settings["lr_scheduler_kwargs"] == plain["lr_scheduler_kwargs"]
    assert settings["batch_items"] == 4096
    unmeasured = read(run_dir, "--eval_strategy", "no")
    assert (unmeasured["eval_strategy"], unmeasured["early_stopping_patience"]) == ("no", 0)
    for group in TOGETHER:
        assert any(name in FOR_ALL for name in group)


@pytest.mark.parametrize("flags", [("--architecture", "qwen3"), ("--model_name_or_path", "a/model")])
def test_other_models_keep_their_own_defaults(tmp_path: Path, flags: tuple[str, ...]) -> None:
    settings = read(data_folder(tmp_path, 1000, 10_000), *flags)
    assert settings["batch_items"] == 0
    assert settings["item_dropout"] == 0
    assert settings["num_train_epochs"] == (20 if "qwen3" in flags else 3)


def test_data_of_medium_density_whose_order_counts_get_the_light_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.main(["--run_dir", str(tmp_path), "--dataset", "demo"])
    asked = {"run_dir": tmp_path, "architecture": "rq_transformer"}
    chosen = settings_by_size(asked)
    assert tuple(chosen[name] for name in OF_DROPOUT) == BY_DENSITY[-1][1]
    assert "by 70 training interactions an item, and their order counts for much (NDCG@10" in capsys.readouterr().out
    assert set(OF_DROPOUT).isdisjoint(settings_by_size(asked | dict.fromkeys(OF_DROPOUT, 1)))
    monkeypatch.setattr(advice, "ORDER_COUNTS", 3.0)
    assert tuple(settings_by_size(asked)[name] for name in OF_DROPOUT) == BY_DENSITY[1][1]


def test_data_that_are_missing_are_the_stages_to_report(tmp_path: Path) -> None:
    assert settings_by_size({"run_dir": tmp_path}) == {}


def test_the_table_of_the_docs_is_the_recipe() -> None:
    text = (ROOT / "docs" / "sft.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| below ") or line.startswith("| 130 ")]
    table = [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines]
    assert [[float(cell) for cell in row] for row in table] == [list(map(float, values)) for _, values in BY_DENSITY]
    header = next(line for line in text.splitlines() if line.startswith("| training interactions an item"))
    assert tuple(re.findall(r"`(\w+)`", header)) == OF_DROPOUT
    for name, value in recipe_module.FOR_ALL.items():
        if not isinstance(value, dict):
            assert f"`{name}` {value:g}" in text if isinstance(value, float | int) else f"`{name}` {value}" in text


def test_a_pretrained_model_has_rates_and_a_vocabulary_term_of_its_kind(tmp_path: Path) -> None:
    run_dir = data_folder(tmp_path / "run", 1000, 10_000)
    pretrained = ["--model_name_or_path", "some/model"]
    settings = read(run_dir, *pretrained)
    assert (settings["learning_rate"], settings["num_train_epochs"]) == (3e-4, 3)
    assert settings["vocabulary_loss_weight"] == 0.1
    assert settings["batch_items"] == 0, "nothing of the recipe for an RQ-Transformer"
    rates = [
        read(run_dir, *pretrained, "--train_weights", how)["learning_rate"] for how in ("full", "lora", "sid_rows")
    ]
    assert rates == sorted(set(rates))
    told = read(run_dir, *pretrained, "--learning_rate", "0.004", "--vocabulary_loss_weight", "0")
    assert (told["learning_rate"], told["vocabulary_loss_weight"]) == (0.004, 0)
    assert read(run_dir, *pretrained, "--normaliser", "full")["vocabulary_loss_weight"] == 0
    one_position = read(run_dir, *pretrained, "--layout", "one_position")
    assert (one_position["learning_rate"], one_position["vocabulary_loss_weight"]) == (3e-4, 0), "it writes no words"
    assert read(run_dir, "--architecture", "qwen3")["vocabulary_loss_weight"] == 0
    assert read(run_dir)["vocabulary_loss_weight"] == 0


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_finished_folder_goes_on_with_its_own_settings(tmp_path: Path, stage: str) -> None:
    run_dir, folder = data_folder(tmp_path / "run", 1000, 10_000), tmp_path / stage
    folder.mkdir()
    of_sft = {"learning_rate": 0.01, "weight_decay": 0.3, "train_weights": "full"}
    of_rl = {"learning_rate": 0.01}
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": of_sft if stage == "sft" else of_rl}))
    settings = read(run_dir, "--model_name_or_path", str(folder))
    fresh = read(run_dir, "--architecture", "qwen3")
    wanted = (0.01, 0.3) if stage == "sft" else (fresh["learning_rate"], fresh["weight_decay"])
    assert (settings["learning_rate"], settings["weight_decay"]) == wanted
    assert settings["vocabulary_loss_weight"] == 0

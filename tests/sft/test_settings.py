"""Settings of both training stages: every inherited one is honoured or refused, and everything but a short list decides the model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from run_dirs import ROOT, assert_one_sentence, exit_code, finished_sft_run, make_run_dir, run_stage
from trl import GRPOConfig, SFTConfig

from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.rl import grpo
from sidrec.rl import settings as rl_settings
from sidrec.rl.settings import RlTrainerConfig
from sidrec.rl.training_arguments import grpo_arguments
from sidrec.sft import settings as sft_settings
from sidrec.sft import train
from sidrec.sft.settings import SftTrainerConfig
from sidrec.sft.training_arguments import sft_arguments, with_hardware

STAGES = {"sft": (sft_settings, SftTrainerConfig, SFTConfig), "rl": (rl_settings, RlTrainerConfig, GRPOConfig)}
FIELDS = [
    (stage, kind, field.name)
    for stage, (settings, _, _) in STAGES.items()
    for kind in settings.CONFIGS
    for field in dataclasses.fields(kind)
]
# where a field's own default leaves no other valid value beside the others, some others that do
TOGETHER: dict[str, dict[str, Any]] = {
    "eval_steps": {"eval_steps": 7.0, "save_steps": 7.0},
    "save_steps": {"eval_steps": 7.0, "save_steps": 7.0},
    "eval_strategy": {"eval_strategy": "epoch", "save_strategy": "epoch"},
    "save_strategy": {"eval_strategy": "epoch", "save_strategy": "epoch"},
    "hidden_size": {"hidden_size": 256},
    "num_attention_heads": {"num_attention_heads": 2},
    "dataloader_prefetch_factor": {"dataloader_prefetch_factor": 3, "dataloader_num_workers": 1},
    "metric_for_best_model": {"metric_for_best_model": "eval_ndcg@10"},
    "depth_head": {"depth_head": "additive", "architecture": "rq_transformer"},
    "smoothing": {"smoothing": False, "architecture": "rq_transformer"},
    "joint_levels": {"joint_levels": 1, "depth_head": "additive", "architecture": "rq_transformer"},
    "exact_children": {"exact_children": 2, "depth_head": "additive", "architecture": "rq_transformer"},
    "item_loss_weight": {"item_loss_weight": 0.5, "depth_head": "additive", "architecture": "rq_transformer"},
    "layout": {"layout": "one_position", "model_name_or_path": "a/model"},
    "opening": {"opening": "Items:", "layout": "one_position", "model_name_or_path": "a/model"},
    "draw": {"draw": "beams", "inject_target": False},
    "bf16": {"bf16": True},
    "quota_column": {"quota_column": "genres", "rewards": ["category_quota"]},
    "quotas": {"quotas": ["drama=.3"], "quota_column": "genres", "rewards": ["category_quota"]},
}
PARTS = (
    "architecture",
    "layout",
    "model_name_or_path",
    "depth_head",
    "joint_levels",
    "exact_children",
    "smoothing",
    "item_loss_weight",
    "quotas",
    "quota_column",
    "rewards",
)  # of an RQ-Transformer, and of quotas, which need one another


def other_value(kind: type, name: str) -> dict[str, Any]:
    """Settings in which the field differs from its default."""
    default = getattr(kind(), name)
    if name in TOGETHER and kind(**known(kind, TOGETHER[name])) and TOGETHER[name][name] != default:
        return known(kind, TOGETHER[name])
    if name in ("eval_strategy", "save_strategy"):
        return {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 500.0, "save_steps": 500.0}
    return {name: different(get_type_hints(kind)[name], default)}


def known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def different(kind: Any, default: Any) -> Any:
    """A value of this type that is not the default."""
    if get_origin(kind) in (Union, types.UnionType):
        return different(next(part for part in get_args(kind) if part is not type(None)), default)
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != default)
    if kind is bool:
        return not default
    if kind is float:
        return 2.0 if default is None else 0.5 if default == 0 else default / 2 if default < 1 else default + 2
    if kind is int:
        return 2 if default in (None, -1) else default * 2 or 1
    if get_origin(kind) is list:
        return [*default, default[0]]
    if get_origin(kind) is dict:
        return {"num_cycles": 1.5}
    return kind("something/else")


def left_out(settings: Any, configs: list[Any]) -> tuple[str, ...]:
    if settings is sft_settings:
        return sft_settings.undecisive(next(config for config in configs if isinstance(config, sft_settings.SftConfig)))
    return settings.UNDECISIVE


@pytest.mark.parametrize(("stage", "kind", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_every_setting_decides_or_is_on_the_short_list(stage: str, kind: type, name: str) -> None:
    settings = STAGES[stage][0]
    others = [other() for other in settings.CONFIGS if other is not kind]
    flags = other_value(kind, name)
    changed = dataclasses.replace(kind(), **flags)
    needed = {
        other: value for other, value in flags.items() if other in PARTS and other != name
    }  # the same on both sides
    alone = name not in PARTS or name == "quota_column"  # the reward of quotas is refused without a column
    base = kind() if alone else dataclasses.replace(kind(), **needed)
    if getattr(changed, name) == getattr(kind(), name):  # 0.0 and 0 are the same setting, and so no other value
        pytest.fail(f"{name}: {flags} changes nothing")
    before, after = (
        fingerprint(config, *others, leave_out=left_out(settings, [config, *others])) for config in (base, changed)
    )
    assert (before == after) == (name in settings.UNDECISIVE)


@pytest.mark.parametrize("stage", list(STAGES))
def test_every_field_of_trl_is_honoured_or_refused_with_a_reason(stage: str) -> None:
    settings, ours, theirs = STAGES[stage]
    inherited = {field.name for field in dataclasses.fields(theirs)}
    honoured = {field.name for field in dataclasses.fields(ours)}
    assert inherited == honoured | settings.REFUSED.keys(), "a field that TRL has added or dropped must be looked at"
    assert not honoured & settings.REFUSED.keys()
    main = {"sft": train.main, "rl": grpo.main}[stage]
    for name, reason in settings.REFUSED.items():
        assert len(reason.split()) > 3, name
        for arguments in ([f"--{name}", "1"], [f"--{name}=1"], [f"--{name.replace('_', '-')}", "1"]):
            with pytest.raises(InputError, match=f"{name} cannot be set here: {reason[:20]}"):
                main(arguments)


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_refused_key_of_a_file_is_refused_too(stage: str, tmp_path: Path) -> None:
    settings = STAGES[stage][0]
    (tmp_path / "x.yaml").write_text("use_cache: false\n")
    with pytest.raises(InputError, match="use_cache cannot be set here"):
        parse_configs(settings.CONFIGS, ["--config", str(tmp_path / "x.yaml")], refused=settings.REFUSED)


@pytest.mark.parametrize("stage", list(STAGES))
def test_honoured_settings_reach_trl(stage: str, tmp_path: Path) -> None:
    """Every field of ours arrives in TRL's configuration as it was given; where the two names have one meaning there is one field."""
    ours, arguments_of = STAGES[stage][1], {"sft": sft_arguments, "rl": grpo_arguments}[stage]
    for field in dataclasses.fields(ours):
        flags = other_value(ours, field.name) | {"use_cpu": True} | ({"bf16": False} if field.name != "bf16" else {})
        if field.name in (
            "use_cpu",
            "ddp_backend",
            "hub_token",
            "push_to_hub",
            "fp16",
            "tf32",
            "dataloader_pin_memory",
            "report_to",
            "full_determinism",
        ):
            continue  # of GPUs, of programs that are not installed, of the whole process; the hub's are this project's own
        arguments = arguments_of(with_hardware(dataclasses.replace(ours(), **flags)), tmp_path)
        given = getattr(arguments, field.name)
        assert getattr(given, "value", given) == flags[field.name], field.name


MISTAKES = {
    "max_steps": ("0", "max_steps=0 trains nothing"),
    "valid_users": ("0", "valid_users=0 cannot be; give 1 or more"),
    "metric_for_best_model": ("eval_loss", "metric_for_best_model=eval_loss is not measured here"),
    "per_device_train_batch_size": ("0", "per_device_train_batch_size=0 cannot be; give 1 or more"),
    "num_train_epochs": ("0", "num_train_epochs=0.0 cannot be; give a number above 0"),
    "seed": ("-1", "seed is -1; it must be at least 0"),
    "learning_rate": ("nan", "learning_rate=nan cannot be; give 0 or more"),
    "weight_decay": ("-0.1", "weight_decay=-0.1 is negative"),
    "warmup_steps": ("inf", "warmup_steps=inf cannot be"),
    "adam_beta2": ("1", "adam_beta2=1.0 is no decay"),
    "eval_strategy": ("never", "eval_strategy is 'never'; it must be one of"),
    "eval_steps": ("0", "eval_steps=0.0 cannot be"),
    "logging_steps": ("nan", "logging_steps=nan cannot be"),
    "lr_scheduler_type": ("cosin", "lr_scheduler_type is 'cosin'; it must be one of `linear`"),
    "early_stopping_patience": ("-2", "early_stopping_patience=-2 is negative"),
}
SFT_MISTAKES = {
    "num_hidden_layers": ("0", "num_hidden_layers=0 cannot be"),
    "dropout": ("1", "dropout=1.0 must be at least 0 and less than 1"),
    "next_item": ("nan", "next_item=nan is no share"),
    "lora_alpha": ("nan", "lora_alpha=nan cannot be"),
    "depth_head": ("deep", "depth_head is 'deep'; it must be one of `marginal`, `additive`, `transformer`"),
    "smoothing": ("some", "smoothing is 'some'; it must be true or false"),
    "batch_items": ("-1", "batch_items=-1 "),
    "train_weights": ("LoRA", "train_weights is 'LoRA'; it must be one of"),
}
RL_MISTAKES = {
    "num_generations": ("1", "num_generations=1 leaves nothing to compare"),
    "epsilon": ("-1", "epsilon=-1.0 is negative"),
    "kl_weight": ("nan", "kl_weight=nan cannot be"),
    "reward_weights": ("nan", "reward_weights=[nan] has one that is no number"),
    "draw": ("beam", "draw is 'beam'; it must be one of"),
}


@pytest.mark.parametrize(
    ("stage", "name", "value", "sentence"),
    [
        (stage, name, *mistake)
        for stage, mistakes in (("sft", MISTAKES | SFT_MISTAKES), ("rl", MISTAKES | RL_MISTAKES))
        for name, mistake in mistakes.items()
    ],
)
def test_values_that_cannot_be_are_one_sentence_before_anything_is_loaded(
    stage: str, name: str, value: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = {"sft": "sft/train.py", "rl": "rl/grpo.py"}[stage]
    assert exit_code(script, "--run_dir", tmp_path / "absent", f"--{name}", value) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert_one_sentence(error)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("script", ["sft/train.py", "rl/grpo.py"])
def test_help_is_short_and_imports_nothing_heavy(script: str) -> None:
    code = f"""
import runpy, sys
sys.argv = [{script!r}, sys.argv[1]]
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code
heavy = [name for name in ("torch", "transformers", "trl", "polars", "datasets", "peft", "accelerate") if name in sys.modules]
assert not heavy, heavy
"""
    short, whole = (
        subprocess.run([sys.executable, "-c", code, flag], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for flag in ("--help", "--help-all")
    )
    flags = [line.split()[0] for line in short.splitlines() if line.startswith("--")]
    assert 15 <= len(flags) <= 25, flags
    everything = {line.split()[0].removeprefix("--") for line in whole.splitlines() if line.startswith("--")}
    settings = {"sft/train.py": sft_settings, "rl/grpo.py": rl_settings}[script]
    names = {field.name for kind in settings.CONFIGS for field in dataclasses.fields(kind)}
    assert everything == names | {"config"}
    for kind in settings.CONFIGS:
        assert all(
            field.metadata["help"].endswith(".") or "stage" in kind.__name__ for field in dataclasses.fields(kind)
        )


def test_without_flags_a_stage_takes_the_runs_last_settings(tmp_path_factory, tmp_path, capsys) -> None:
    run_dir = finished_sft_run(tmp_path_factory)
    capsys.readouterr()
    train.main(["--run_dir", str(run_dir)])
    out = capsys.readouterr().out
    assert f"settings: the last ones of {run_dir / 'sft'}" in out
    assert "finished already" in out


def test_other_settings_in_the_same_run_directory_are_refused_by_name(tmp_path_factory) -> None:
    run_dir = finished_sft_run(tmp_path_factory)
    for name, value, recorded in (("adam_epsilon", 1e-5, "1e-08"), ("neftune_noise_alpha", 5.0, "None")):
        with pytest.raises(InputError, match=f"sft was made with {name}={recorded}, not {value!r}"):
            run_stage(train, run_dir, **{name: value})
    assert run_stage(train, run_dir, logging_steps=3, hub_token="hf_secret", report_to="none") is None
    manifest = (run_dir / "sft" / "manifest.json").read_text(encoding="utf-8")
    assert "hub_token" not in json.loads(manifest)["fingerprint"]


def test_the_stage_says_what_is_missing_where_there_is_nothing(tmp_path, capsys) -> None:
    assert exit_code("sft/train.py", "--run_dir", tmp_path / "nothing") == 2
    assert "holds no finished 'data' stage; run `" in capsys.readouterr().err
    run_dir = make_run_dir(tmp_path / "run")
    assert exit_code("rl/grpo.py", "--run_dir", run_dir) == 2
    assert "holds no finished 'sft' stage; run `accelerate launch sft/train.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"lr_scheduler_kwargs": {"a": 1}},
            r"lr_scheduler_kwargs=\{'a': 1\} cannot be used by lr_scheduler_type=cosine",
        ),
        ({"lr_scheduler_kwargs": {"num_cycles": "x"}}, "cannot be used by lr_scheduler_type=cosine"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "lr_scheduler_kwargs=None cannot be used by lr_scheduler_type=cosine_with",
        ),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"min_lr": 1e-5}}, "lr_scheduler_type=constant"),
    ],
)
def test_arguments_that_a_schedule_does_not_take_are_refused(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        sft_arguments(with_hardware(SftTrainerConfig(use_cpu=True, bf16=False, **settings)), tmp_path)


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidrec.sft.training_arguments.find_spec", lambda name: None)
    with pytest.raises(InputError, match="report_to=wandb needs the package wandb, which is not installed"):
        with_hardware(SftTrainerConfig(report_to="wandb"))

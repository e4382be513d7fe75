"""Every file under configs/ is read here by the code that reads it in earnest."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from run_dirs import stage_configs

from sidrec.codec import train_transformer, train_vae
from sidrec.codec.prepare_text import TextConfig
from sidrec.data.settings import PrepareConfig
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.errors import InputError
from sidrec.rl import grpo
from sidrec.sft import train
from sidrec.tokenizer.config import TokenizerConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
STAGE_CONFIGS: dict[str, tuple[type, ...]] = {
    "data": (PrepareConfig,),
    "tokenizer": (TokenizerConfig,),
    "sft": train.CONFIGS,
    "rl": grpo.CONFIGS,
    "text": (TextConfig,),
    "codec": train_vae.CONFIGS,
    "codec_transformer": train_transformer.CONFIGS,
    "evaluation": (EvaluateConfig,),
}
DATASETS = ("demo", "ml-100k", "ml-1m", "own")
FILES = sorted(path for path in CONFIGS.rglob("*") if path.is_file())


def parse(path: Path) -> tuple[Any, ...]:
    """What the stage makes of a YAML file; the user's two files, which own.yaml leaves to the command line, are added."""
    own_data = path.parent.name == "data" and path.stem == "own"
    flags = ["--interactions", "log.csv", "--items", "catalogue.csv"] if own_data else []
    return stage_configs(STAGE_CONFIGS[path.parent.name], ["--config", str(path), *flags])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_file_is_read_by_its_stage(path: Path) -> None:
    assert path.suffix == ".yaml", f"{path}: no test knows this kind of file"
    assert path.parent.parent == CONFIGS, f"{path} lies deeper than the folder of a stage"
    if path.parent.name == "accelerate":
        load_config_from_file(str(path))
        return
    assert path.parent.name in STAGE_CONFIGS, f"no test knows the folder {path.parent}"
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    read = {name: value for config in parse(path) for name, value in vars(config).items()}
    for name, value in written.items():
        setting = read[name].value if isinstance(read[name], Enum) else read[name]
        same = setting == value or str(setting) == str(value)
        assert same, f"{path}: {name} is {value!r} in the file and {setting!r} when read"


@pytest.mark.parametrize("stage", ["data", "tokenizer", "sft", "rl"])
def test_every_data_set_of_the_quickstart_has_a_config_of_every_stage(stage: str) -> None:
    assert {path.stem for path in (CONFIGS / stage).iterdir()} >= set(DATASETS)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_stages_of_a_data_set_share_a_run_directory(dataset: str) -> None:
    folders = {
        str(parse(CONFIGS / stage / f"{dataset}.yaml")[0].run_dir) for stage in ("data", "tokenizer", "sft", "rl")
    }
    assert folders == {f"outputs/{dataset}"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_rl_batches_hold_whole_groups(dataset: str) -> None:
    training = parse(CONFIGS / "rl" / f"{dataset}.yaml")[-1]
    assert training.per_device_train_batch_size % training.num_generations == 0


@pytest.mark.parametrize("stage", sorted(STAGE_CONFIGS))
def test_a_misspelt_key_is_refused(stage: str, tmp_path: Path) -> None:
    (tmp_path / "misspelt.yaml").write_text("run_dir: outputs/demo\nseeed: 1\n")
    with pytest.raises(InputError, match="seeed"):
        stage_configs(STAGE_CONFIGS[stage], ["--config", str(tmp_path / "misspelt.yaml")])


def test_a_misspelt_key_of_accelerate_is_refused(tmp_path: Path) -> None:
    text = (CONFIGS / "accelerate" / "two_processes.yaml").read_text(encoding="utf-8")
    (tmp_path / "misspelt.yaml").write_text(text.replace("num_processes", "num_proceses"))
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(tmp_path / "misspelt.yaml"))


def test_the_accelerate_files_start_two_processes_without_a_gpu() -> None:
    """`MULTI_CPU`, or no type at all, would start one."""
    kinds = {"two_processes": "MULTI_GPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED", "fsdp2": "FSDP"}
    for name, kind in kinds.items():
        config = load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
        assert (str(config.distributed_type.value), config.num_processes) == (kind, 2), name
        assert config.deepspeed_config.get("zero_stage") == {"zero2": 2, "zero3": 3}.get(name)

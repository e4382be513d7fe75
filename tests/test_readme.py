"""Every command of the README and of CONTRIBUTING.md is one that works: its script exists and takes its flags.

The commands are parsed by the code that would run them, and not run; test_quickstart.py runs the first one.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import polars as pl
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from run_dirs import stage_configs

from benchmarks.constrained_decoding import ConstrainedDecodingConfig
from benchmarks.data_scale import DataScaleConfig
from benchmarks.item_texts import ItemTextsConfig
from benchmarks.kill_and_resume import KillConfig
from benchmarks.levers import LeversConfig
from benchmarks.main_job import MainJobConfig
from benchmarks.results import ResultsConfig
from benchmarks.rl_gain import RlGainConfig
from benchmarks.rl_step import RlStepConfig
from benchmarks.row_starts import RowStartsConfig
from benchmarks.sft_cost import SftCostConfig, SmallBackbone
from benchmarks.tokenizer_downstream import DownstreamConfig
from benchmarks.tokenizer_quality import QualityConfig
from benchmarks.tokenizer_speed import SpeedConfig
from sidrec.data.own import read_own
from sidrec.data.settings import PrepareConfig
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.errors import InputError
from sidrec.rl import grpo
from sidrec.serving.recommend import RecommendConfig
from sidrec.sft import train
from sidrec.tokenizer.add_items import AddItemsConfig
from sidrec.tokenizer.compare import CompareConfig
from sidrec.tokenizer.config import TokenizerConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "RESULTS.md", "CONTRIBUTING.md")
DATACLASSES: dict[str, tuple[type, ...]] = {
    "sidrec.data.prepare": (PrepareConfig,),
    "run_tokenizer.sh": (TokenizerConfig,),
    "sft/train.py": train.CONFIGS,
    "rl/grpo.py": grpo.CONFIGS,
    "sidrec.evaluation.evaluate": (EvaluateConfig,),
    "sidrec.serving.recommend": (RecommendConfig,),
    "sidrec.tokenizer.add_items": (AddItemsConfig,),
    "sidrec.tokenizer.compare": (CompareConfig,),
    "benchmarks.constrained_decoding": (ConstrainedDecodingConfig,),
    "benchmarks.data_scale": (DataScaleConfig,),
    "benchmarks.item_texts": (ItemTextsConfig,),
    "benchmarks.kill_and_resume": (KillConfig,),
    "benchmarks.levers": (LeversConfig,),
    "benchmarks.main_job": (MainJobConfig,),
    "benchmarks.rl_gain": (RlGainConfig,),
    "benchmarks.rl_step": (RlStepConfig,),
    "benchmarks.results": (ResultsConfig,),
    "benchmarks.row_starts": (RowStartsConfig,),
    "benchmarks.sft_cost": (SftCostConfig, SmallBackbone),
    "benchmarks.tokenizer_downstream": (DownstreamConfig,),
    "benchmarks.tokenizer_quality": (QualityConfig,),
    "benchmarks.tokenizer_speed": (SpeedConfig,),
}
REQUIRED_COMMANDS = (
    "bash run_quickstart.sh",
    "bash run_tests.sh",
    "python -m sidrec.data.prepare",
    "bash run_tokenizer.sh",
    "accelerate launch sft/train.py",
    "accelerate launch rl/grpo.py",
    "python -m sidrec.evaluation.evaluate",
    "python -m sidrec.serving.recommend",
)


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Every command of the page's bash blocks, continued lines joined, comments and blank lines left out."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if shlex.split(line, comments=True)]


ALL_COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


def check(command: str) -> None:
    """Raise when a command names what does not exist, or a flag that is not taken. Relative paths are the repository's."""
    match shlex.split(command, comments=True):
        case ["bash", "run_quickstart.sh", *flags]:
            check_quickstart(flags)
        case ["bash", "run_tests.sh", *flags]:
            check_pytest_flags(flags)
        case ["bash", "run_tokenizer.sh", config, *flags] if config.endswith(".yaml"):
            check_flags("run_tokenizer.sh", ["--config", config, *flags])
        case ["bash", "run_tokenizer.sh", *flags]:
            check_flags("run_tokenizer.sh", flags)
        case ["bash", "install.sh"]:
            assert (ROOT / "install.sh").is_file()
        case ["python", "-m", module, *flags]:
            assert importlib.util.find_spec(module) is not None, f"there is no module {module}"
            check_flags(module, flags)
        case ["python", script, *flags]:
            check_script(script, flags)
        case ["accelerate", "launch", *flags]:
            check_launch(flags)
        case ["pip", "install", "-e", target]:
            check_extra(target)
        case ["source", ".venv/bin/activate"]:
            pass
        case ["pre-commit", "install"]:
            assert yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
        case words:
            raise AssertionError(f"no test knows the command {shlex.join(words)}")


def check_flags(name: str, flags: list[str]) -> None:
    assert name in DATACLASSES, f"no test knows the flags of {name}"
    stage_configs(DATACLASSES[name], flags)


def check_script(script: str, flags: list[str]) -> None:
    assert (ROOT / script).is_file(), f"there is no {script}"
    check_flags(script, flags)


def check_launch(flags: list[str]) -> None:
    parsed, unknown = launch_command_parser().parse_known_args(flags)
    assert not unknown
    assert parsed.config_file is None or (ROOT / parsed.config_file).is_file(), f"there is no {parsed.config_file}"
    assert parsed.num_processes is None, "alone, it starts one process on a machine without a GPU"
    check_script(parsed.training_script, parsed.training_script_args)


def check_quickstart(flags: list[str]) -> None:
    """`--help` comes last, so the script reads all that is before it, and stops there."""
    done = subprocess.run(
        ["bash", "run_quickstart.sh", *flags, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    dataset = flags[0] if flags and not flags[0].startswith("-") else "demo"
    for stage in ("data", "tokenizer", "sft", "rl"):
        assert (ROOT / "configs" / stage / f"{dataset}.yaml").is_file(), f"{stage} has no config for {dataset}"


def check_pytest_flags(flags: list[str]) -> None:
    for file in (flag for flag in flags if flag.endswith(".py")):
        assert (ROOT / file).is_file(), f"there is no {file}"
        if "-k" in flags:
            words = flags[flags.index("-k") + 1]
            assert words in (ROOT / file).read_text(encoding="utf-8"), f"no test of {file} is selected by {words}"
    if "-m" in flags:
        assert flags[flags.index("-m") + 1] in ("slow", "not slow")


def check_extra(target: str) -> None:
    extra = re.fullmatch(r"\.\[(\w+)\]", target)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extra is not None
    assert extra.group(1) in project["optional-dependencies"], f"pyproject.toml has no extra {target}"


@pytest.mark.parametrize(("page", "command"), ALL_COMMANDS, ids=[command for _, command in ALL_COMMANDS])
def test_every_command_is_accepted(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check(command)


@pytest.mark.parametrize("start", REQUIRED_COMMANDS)
def test_the_readme_shows_how_to_run_everything(start: str) -> None:
    assert any(command.startswith(start) for command in commands("README.md"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("bash run_quickstart.sh --fast", "unknown argument --fast"),
        ("bash run_quickstart.sh ml-20m", "no config for ml-20m"),
        ("bash run_tests.sh tests/test_absent.py", "no tests/test_absent.py"),
        ("bash run_tokenizer.sh --levels 3", "--levels"),
        ("python -m data.prepared", "no module data.prepared"),
        ("python -m sidrec.serving.recommend --users 3", "--users"),
        ("python -m sidrec.data.prepare --config configs/data/absent.yaml", "absent.yaml cannot be read"),
        ("accelerate launch sft/absent.py", "no sft/absent.py"),
        ("accelerate launch sft/train.py --epochs 3", "--epochs"),
        ("accelerate launch --config_file absent.yaml sft/train.py", "no absent.yaml"),
        ("accelerate launch --num_processes 2 sft/train.py", "starts one process"),
        ("pip install -e .[fast]", "no extra"),
        ("make all", "no test knows the command"),
    ],
)
def test_a_wrong_command_would_be_found(command: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, InputError)) as error:
        check(command)
    assert words in str(error.value)


def headings_of(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    lines = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert targets
    for target in targets:
        place, _, heading = target.partition("#")
        assert not place or (ROOT / place).exists(), f"{page}: there is no {place}"
        assert not heading or heading in headings_of(place or page), f"{page}: there is no heading {target}"


def test_the_example_of_own_data_can_be_read(tmp_path: Path) -> None:
    log, catalogue = blocks("README.md", "csv")
    (tmp_path / "log.csv").write_text(log, encoding="utf-8")
    (tmp_path / "catalogue.csv").write_text(catalogue, encoding="utf-8")
    raw = read_own(tmp_path / "log.csv", tmp_path / "catalogue.csv")
    assert raw.interactions["user_id"].to_list() == ["ann", "ann", "bob"]
    assert raw.interactions["timestamp"].diff().drop_nulls().to_list() == [2 * 86400 + 30731, -(86400 + 36972)]
    assert raw.items.columns == ["item_id", "title", "category", "brand"]
    assert raw.items.filter(pl.col("item_id") == "pot-9")["title"].item() == "Cast-iron teapot"


def test_the_examples_in_python_are_python() -> None:
    examples = [block for page in PAGES for block in blocks(page, "python")]
    assert examples
    for example in examples:
        ast.parse(example)


def test_the_example_of_a_semantic_id_is_consistent() -> None:
    """The history and its continuation are made of the IDs in the table above them, and of the picture's codes."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sids = dict(re.findall(r"^\| (The [\w ]+) \|.*\| `([^`]+)` \|$", text, re.MULTILINE))
    feast, last, crimson = (sids[f"The {title}"] for title in ("Forgotten Feast", "Last Captain", "Crimson Captain"))
    assert f"`<history>{feast}{last}`, and the recommendation is how it goes on: `{crimson}`" in text
    drawing = (ROOT / "docs" / "draw_stages.py").read_text(encoding="utf-8")
    for sid in (last, crimson):
        assert " ".join(re.findall(r"\w+_\d+", sid)) in drawing

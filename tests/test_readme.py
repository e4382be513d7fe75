"""Every command of the documentation, of comments in configs/ and of the heads of entry points works: its program takes its flags.

The commands are parsed by the code that would run them, and not run; test_quickstart.py runs the first one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from pages import PAGES, ROOT, blocks, commands, commands_in_comments, text_of

from sidrec import quickstart
from sidrec.__main__ import COMMANDS
from sidrec.codec.command import WORDS
from sidrec.data.own import read_own
from sidrec.pipeline.errors import InputError

PARSERS = ("parse_config", "parse_configs", "parse_arguments")  # by which an entry point reads its command line
SCRIPTS = {
    "sft/train.py": "sidrec.sft.train",
    "rl/grpo.py": "sidrec.rl.grpo",
    "codec/train_vae.py": "sidrec.codec.train_vae",
    "codec/train_transformer.py": "sidrec.codec.train_transformer",
}
REQUIRED_COMMANDS = (
    "bash run_quickstart.sh",
    "bash run_tests.sh",
    "sidrec prepare",
    "bash run_tokenizer.sh",
    "accelerate launch sft/train.py",
    "accelerate launch rl/grpo.py",
    "sidrec evaluate",
    "sidrec recommend",
)
ALL_COMMANDS = sorted(
    {command for page in PAGES for command in commands(page)} | {command for _, command in commands_in_comments()}
)


class ParsedError(Exception):
    """Raised by an entry point of these tests when its command line has been read, in place of going on."""


def check(command: str) -> None:
    """Raise when a command names what does not exist, or a flag that is not taken. Paths of scripts are the repository's."""
    match shlex.split(command, comments=True):
        case ["bash", "run_quickstart.sh", *flags]:
            check_quickstart(flags)
        case ["bash", "run_tests.sh", *flags]:
            check_pytest_flags(flags)
        case ["bash", "run_tokenizer.sh", config, *flags] if config.endswith(".yaml"):
            check_sidrec("tokenize", ["--config", config, *flags])
        case ["bash", "run_tokenizer.sh", *flags]:
            check_sidrec("tokenize", flags)
        case ["bash", "install.sh"] | ["bash", "install.sh", "smollm"]:
            assert (ROOT / "install.sh").is_file()
        case ["sidrec", name, *flags]:
            check_sidrec(name, flags)
        case ["python", "-m", module, *flags]:
            check_module(module, flags)
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


def check_module(name: str, flags: list[str]) -> None:
    """Let an entry point read these flags, and stop it there."""
    assert importlib.util.find_spec(name) is not None, f"there is no module {name}"
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        for parser in PARSERS:
            if hasattr(module, parser):
                patch.setattr(module, parser, stopping(getattr(module, parser)))
        if {"--help", "--help-all"} & set(flags):
            with pytest.raises(SystemExit) as end:
                module.main(flags)
            assert not end.value.code, f"{name} ended with code {end.value.code}"
            return
        with contextlib.suppress(ParsedError):
            module.main(flags)
            raise AssertionError(f"{name} does not read its flags by one of {', '.join(PARSERS)}")


def stopping(parse: Callable[..., Any]) -> Callable[..., Any]:
    def parse_and_stop(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        raise ParsedError

    return parse_and_stop


def check_sidrec(name: str, flags: list[str]) -> None:
    assert name in COMMANDS, f"sidrec has no command {name}"
    if name == "env":
        assert not flags, "sidrec env has no flags"
        return
    if name == "codec":
        word, *flags = flags
        assert word in WORDS, f"sidrec codec has no command {word}"
        check_module(WORDS[word].module, flags)
        return
    for module in COMMANDS[name].modules:
        check_module(module, flags)


def check_script(script: str, flags: list[str]) -> None:
    assert (ROOT / script).is_file(), f"there is no {script}"
    if script.startswith("docs/"):
        assert not flags, "a drawing has no flags"
        return
    assert script in SCRIPTS, f"no test knows the flags of {script}"
    check_module(SCRIPTS[script], flags)


def check_launch(flags: list[str]) -> None:
    parsed, unknown = launch_command_parser().parse_known_args(flags)
    assert not unknown
    assert parsed.config_file is None or (ROOT / parsed.config_file).is_file(), f"there is no {parsed.config_file}"
    alone = parsed.num_processes is not None and parsed.config_file is None
    assert not alone, "--num_processes alone starts one process on a machine without a GPU"
    run = check_module if parsed.module else check_script
    run(parsed.training_script, parsed.training_script_args)


def check_quickstart(flags: list[str]) -> None:
    """Every stage reads its own flags, as the quickstart hands them on."""
    request = quickstart.read_request(list(flags))
    for name, stage in quickstart.STAGES.items():
        config = str(quickstart.config_of(name, request.dataset))
        for module in stage.modules:
            check_module(module, ["--config", config, "--run_dir", "outputs/any", *request.flags[name]])


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


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_every_command_is_accepted(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no run directory of a checkout's has a say; configs/… are the packaged ones
    check(command)


@pytest.mark.parametrize("start", REQUIRED_COMMANDS)
def test_the_readme_shows_how_to_run_everything(start: str) -> None:
    assert any(command.startswith(start) for command in commands("README.md"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_sidrec_is_shown(name: str) -> None:
    assert any(re.match(rf"sidrec {name}\b(?!-)", command) for page in PAGES for command in commands(page))


@pytest.mark.parametrize("word", WORDS)
def test_every_command_of_the_codec_is_shown(word: str) -> None:
    assert any(re.match(rf"sidrec codec {word}\b(?!-)", command) for page in PAGES for command in commands(page))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("bash run_quickstart.sh --fast", "unknown argument --fast"),
        ("bash run_quickstart.sh ml-20m", "no configs/tokenizer/ml-20m.yaml"),
        ("bash run_tests.sh tests/test_absent.py", "no tests/test_absent.py"),
        ("bash run_tokenizer.sh --levels 3", "--levels"),
        ("python -m data.prepared", "no module data.prepared"),
        ("sidrec recommends --user 3", "no command recommends"),
        ("sidrec recommend --visitors 3", "--visitors"),
        ("sidrec codec texts --documents corpus", "no command texts"),
        ("sidrec codec text --documents corpus --rows 3", "--rows"),
        ("sidrec prepare --config configs/data/absent.yaml", "absent.yaml cannot be read"),
        ("accelerate launch sft/absent.py", "no sft/absent.py"),
        ("accelerate launch sft/train.py --epochs 3", "--epochs"),
        ("accelerate launch --config_file absent.yaml sft/train.py", "no absent.yaml"),
        ("accelerate launch --num_processes 2 sft/train.py", "starts one process"),
        ("pip install -e .[fast]", "no extra"),
        ("make all", "no test knows the command"),
    ],
)
def test_a_wrong_command_is_noticed(command: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, InputError)) as error:
        check(command)
    assert words in str(error.value)


def test_the_example_of_own_data_can_be_read(tmp_path: Path) -> None:
    log, catalogue = blocks("README.md", "csv")
    (tmp_path / "log.csv").write_text(log, encoding="utf-8")
    (tmp_path / "catalogue.csv").write_text(catalogue, encoding="utf-8")
    raw = read_own(tmp_path / "log.csv", tmp_path / "catalogue.csv")
    assert raw.interactions["user_id"].to_list() == ["ann", "ann", "bob"]
    assert raw.interactions["timestamp"].diff().drop_nulls().to_list() == [2 * 86400 + 30731, -(86400 + 36972)]
    assert raw.items.columns == ["item_id", "title", "category", "brand"]
    assert raw.items.filter(pl.col("item_id") == "pot-9")["title"].item() == "Cast-iron teapot"


def test_the_example_of_a_semantic_id_is_consistent() -> None:
    """The history and its continuation are made of the IDs in the table above them, and of the picture's codes."""
    text = text_of("README.md")
    sids = dict(re.findall(r"^\| (The [\w ]+) \|.*\| `([^`]+)` \|$", text, re.MULTILINE))
    feast, last, crimson = (sids[f"The {title}"] for title in ("Forgotten Feast", "Last Captain", "Crimson Captain"))
    assert f"`<history>{feast}{last}`, and the recommendation is how it goes on: `{crimson}`" in text
    drawing = text_of("docs/draw_stages.py")
    for sid in (last, crimson):
        assert " ".join(re.findall(r"\w+_\d+", sid)) in drawing

"""Settings from flags, YAML files, a run's last ones and packaged ones; what is refused, and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from sidrec.pipeline.config import parse_config, parse_configs, peek
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.fingerprint import fingerprint


@dataclass
class Settings:
    """Settings of a test."""

    run_dir: Path = field(metadata={"help": "Where."})
    k: int = field(default=5, metadata={"help": "How many."})
    overwrite: bool = field(default=False, metadata={"help": "Whether."})


def test_flags_win_over_the_yaml_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run_dir: here\nk: 1\n")
    config = parse_config(Settings, ["--config", str(tmp_path / "c.yaml"), "--k", "2", "--overwrite", "true"])
    assert config == Settings(Path("here"), 2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run_dir", "x", "--kk", "3"], "--kk is not a setting; the nearest one is --k"),
        (["--run_dir", "x", "--overwrit", "true"], "the nearest one is --overwrite"),
        (["--run_dir", "x", "stray"], "'stray' belongs to no flag"),
        (["--k", "3"], "--run_dir is missing: Where"),
        (["--config", "env.yaml"], "has `env`"),
        (["--config", "absent.yaml"], "absent.yaml cannot be read"),
        (["--run_dir", "x", "--config"], "needs a YAML file"),
        (["--config", "unknown.yaml"], "unknown.yaml: nosuch is not a setting"),
        (["--config", "broken.yaml"], "not valid YAML"),
        (["--config", "list.yaml"], "holds no settings"),
    ],
)
def test_errors_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("unknown.yaml").write_text("run_dir: x\nnosuch: 3\n")
    Path("env.yaml").write_text("run_dir: x\nenv:\n  PATH: elsewhere\n")
    Path("broken.yaml").write_text("run_dir: [x\n")
    Path("list.yaml").write_text("- x\n")
    with pytest.raises(InputError) as error:
        parse_config(Settings, arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@dataclass
class Typed:
    """One field of every kind."""

    run_dir: Path = field(default=Path("run"), metadata={"help": "Where."})
    number: float = field(default=1.0, metadata={"help": "A number."})
    count: int | None = field(default=None, metadata={"help": "A count."})
    kind: Literal["plain", "fancy"] = field(default="plain", metadata={"help": "A kind."})
    stage: str | None = field(default=None, metadata={"help": "A stage.", "choices": ["sft", "rl"]})
    sizes: list[int] = field(default_factory=list, metadata={"help": "Sizes."})
    more: dict[str, Any] | str | None = field(default=None, metadata={"help": "More.", "rare": True})
    overwrite: bool = field(default=False, metadata={"help": "Whether."})


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("number", "1e-3", 0.001),
        ("number", "-2", -2.0),
        ("count", "7", 7),
        ("count", "none", None),
        ("kind", "fancy", "fancy"),
        ("stage", "rl", "rl"),
        ("more", '{"a": 1}', {"a": 1}),
        ("more", "linear", "linear"),
        ("overwrite", "yes", True),
    ],
)
def test_a_flag_and_a_yaml_value_mean_the_same(tmp_path: Path, name: str, word: str, value: object) -> None:
    (tmp_path / "c.yaml").write_text(f"{name}: {word}\n")
    for arguments in ([f"--{name}", word], ["--config", str(tmp_path / "c.yaml")]):
        assert getattr(parse_config(Typed, arguments), name) == value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("number", "fast", "number is 'fast'; it must be a number"),
        ("count", "1.5", "it must be a whole number or none"),
        ("kind", "Plain", "it must be one of `plain`, `fancy`"),
        ("stage", "sid", "it must be sft or rl"),
        ("sizes", "[1, x]", "it must be a list of whole numbers"),
        ("overwrite", "perhaps", "it must be true or false"),
        ("overwrite", "[true]", "it must be true or false"),
        ("number", "true", "it must be a number"),
        ("run_dir", "{a: 1}", "it must be a path"),
    ],
)
def test_a_wrong_value_in_yaml_is_refused_as_a_flag_is(tmp_path: Path, name: str, value: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(f"{name}: {value}\n")
    with pytest.raises(InputError, match=name) as error:
        parse_config(Typed, ["--config", str(tmp_path / "c.yaml")])
    assert words in str(error.value)


def test_lists_switches_and_dashes() -> None:
    config = parse_config(Typed, ["--sizes", "4", "5", "--run-dir", "x", "--overwrite"])
    assert (config.sizes, config.run_dir, config.overwrite) == ([4, 5], Path("x"), True)


def test_a_refused_setting_says_why(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("number: 1.0\n")
    for arguments in (["--number", "1"], ["--config", str(tmp_path / "c.yaml")]):
        with pytest.raises(InputError, match="number cannot be set here: nothing reads it; leave it out"):
            parse_configs((Typed,), arguments, refused={"number": "nothing reads it"})


def test_without_a_config_the_last_settings_of_the_run_count_and_flags_win(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run" / "sft"
    folder.mkdir(parents=True)
    recorded = fingerprint(Typed(number=3.0, sizes=[7], count=2), leave_out={"run_dir", "overwrite"})
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": recorded | {"gone": 1}}))
    run_dir = str(tmp_path / "run")
    config = parse_config(Typed, ["--run_dir", run_dir, "--count", "9"], stage="sft")
    assert config == Typed(Path(run_dir), number=3.0, sizes=[7], count=9)
    assert f"settings: the last ones of {folder}" in capsys.readouterr().out
    assert parse_config(Typed, ["--run_dir", run_dir]).number == 1.0
    assert peek("number", ["--run_dir", run_dir], stage="sft", run_dir=Path("x")) == 3.0
    assert peek("number", ["--run_dir", run_dir, "--number", "4"], stage="sft", run_dir=Path("x")) == "4"


def test_without_a_config_and_a_run_the_packaged_settings_of_the_data_set_count(tmp_path: Path) -> None:
    @dataclass
    class Some:
        run_dir: Path = Path("x")
        max_items: int = 200
        num_train_epochs: float = 20
        overwrite: bool = False

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text('{"name": "demo"}')
    arguments = ["--run_dir", str(tmp_path)]
    demo = Path(__file__).resolve().parents[2] / "configs" / "sft" / "demo.yaml"
    with pytest.raises(InputError, match="architecture is not a setting"):  # read whole: a file is checked
        parse_config(Some, ["--config", str(demo)])
    config = parse_config(Some, arguments, stage="sft")
    assert (config.run_dir, config.max_items, config.num_train_epochs) == (tmp_path, 50, 6)


@pytest.mark.parametrize("path", ["", "a\0b", "a\udcff"])
def test_what_cannot_be_a_path_is_refused(tmp_path: Path, path: str) -> None:
    """An empty one above all, as of a shell's unset variable: it would mean the working directory."""

    @dataclass
    class Some:
        run_dir: Path = Path("outputs/demo")

    with pytest.raises(InputError, match=r"run_dir is .*; it must be a path"):
        parse_config(Some, [f"--run_dir={path}"])
    (tmp_path / "some.yaml").write_text(f"run_dir: {json.dumps(path)}\n")
    with pytest.raises(InputError, match=r"run_dir is .*; it must be a path"):
        parse_config(Some, ["--config", str(tmp_path / "some.yaml")])


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    @dataclass
    class Some:
        run_dir: Path = Path("outputs/demo")
        seed: int = 0

    assert parse_config(Some, ["--seed", "4294967295"]).seed == 2**32 - 1
    with pytest.raises(InputError, match="seed is 4294967296; it must be at most 4294967295"):
        parse_config(Some, ["--seed", "4294967296"])
    with pytest.raises(InputError, match="seed is -1; it must be at least 0"):
        parse_config(Some, ["--seed", "-1"])


def test_numbers_that_no_array_holds_are_refused() -> None:
    assert parse_config(Typed, ["--count", str(2**63 - 1), "--sizes", str(-(2**63) + 1)]).count == 2**63 - 1
    for flag, number in (("count", 2**63), ("count", -(2**63)), ("sizes", 10**30)):
        with pytest.raises(InputError, match=f"{flag} is {number}; it must be at "):
            parse_config(Typed, [f"--{flag}", str(number)])


@pytest.mark.parametrize("text", ["a\0b", "\udcff", "\ud800x"])
def test_a_text_that_no_file_or_database_takes_is_refused(tmp_path: Path, text: str) -> None:
    """A flag's bytes that are no UTF-8 come as half characters."""

    @dataclass
    class Some:
        run_dir: Path = Path("outputs/demo")
        user: str | None = None
        words: list[str] = field(default_factory=list)

    for flag in ("user", "words"):
        with pytest.raises(
            InputError, match=f"{flag} is .*; it must be .*text.*in UTF-8, without zero bytes"
        ) as raised:
            parse_config(Some, [f"--{flag}", text])
        assert str(raised.value).isprintable()
    (tmp_path / "some.yaml").write_text(f"user: {json.dumps(text)}\n")
    with pytest.raises(InputError, match="user is "):
        parse_config(Some, ["--config", str(tmp_path / "some.yaml")])


def test_help_shows_the_usual_settings_and_help_all_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for flag in ("--help", "-h", "--help-all"):
        with pytest.raises(SystemExit) as end:
            parse_config(Typed, [flag])
        assert end.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "--sizes A [B …]" in shown[0]
    assert "plain|fancy" in shown[0]
    assert "--more" not in shown[0].split("\n\n1 more")[0]
    assert "--more" in shown[2]


def test_a_fingerprint_holds_every_field_but_those_left_out() -> None:
    assert fingerprint(Typed(), leave_out={"run_dir", "overwrite"}).keys() == {
        *("number", "count", "kind", "stage", "sizes", "more")
    }
    with pytest.raises(AssertionError, match="no config has"):
        fingerprint(Typed(), leave_out={"rundir"})


def test_parsing_imports_nothing_heavy() -> None:
    code = "import sys, sidrec.pipeline.config; print(*{'torch', 'polars', 'transformers', 'trl', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

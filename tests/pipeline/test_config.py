from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError


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
        (["--run_dir", "x", "--kk", "3"], "--kk"),
        (["--config", "absent.yaml"], "absent.yaml cannot be read"),
        (["--run_dir", "x", "--config"], "needs a YAML file"),
        (["--config", "unknown.yaml"], "nosuch"),
        (["--config", "broken.yaml"], "not valid YAML"),
        (["--config", "list.yaml"], "mapping"),
    ],
)
def test_errors_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("unknown.yaml").write_text("run_dir: x\nnosuch: 3\n")
    Path("broken.yaml").write_text("run_dir: [x\n")
    Path("list.yaml").write_text("- x\n")
    with pytest.raises(InputError) as error:
        parse_config(Settings, arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_type_ends_with_code_2() -> None:
    with pytest.raises(SystemExit) as end:
        parse_config(Settings, ["--run_dir", "x", "--k", "three"])
    assert end.value.code == 2

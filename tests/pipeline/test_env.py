"""`sidrec`: its commands, and the block for a bug report."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from sidrec.__main__ import COMMANDS, main
from sidrec.pipeline import env
from sidrec.pipeline.errors import InputError

HEAVY = {"torch", "polars", "transformers", "trl", "datasets", "sklearn", "scipy", "deepspeed", "matplotlib"}
LOADED = """
import sys, sidrec.__main__
try:
    sidrec.__main__.main(sys.argv[1:])
except SystemExit:
    pass
print("loaded", *{names} & set(sys.modules))
"""


def test_env_is_one_block_that_names_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    env.main([])
    printed = capsys.readouterr().out
    lines = dict(line.split(": ", 1) for line in printed.splitlines())
    assert lines.keys() >= {"sidrec", "python", "machine", "memory", "compiler", "packages", "optional"}
    assert f"torch {version('torch')}" in lines["packages"]
    assert "GPU" in lines["machine"]


def test_an_unknown_command_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="no command 'train'; it has prepare, tokenize, evaluate"):
        main(["train"])


def test_usage_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    assert "accelerate launch sft/train.py" in printed


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda words: " ".join(words) or "sidrec")
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_no_help_imports_what_takes_long(command: list[str], flag: str) -> None:
    if not command and flag == "--help-all":
        pytest.skip("sidrec itself has no settings")
    code = LOADED.format(names=HEAVY)
    done = subprocess.run([sys.executable, "-c", code, *command, flag], capture_output=True, text=True, check=True)
    *printed, loaded = done.stdout.splitlines()
    assert loaded.split()[1:] == []
    assert printed

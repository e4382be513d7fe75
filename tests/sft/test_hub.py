"""The upload to the hub, with a stand-in for its client: nothing here touches the network."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
from run_dirs import finished_sft_run, make_run_dir, run_stage
from transformers import Trainer
from trl import SFTConfig

from sidrec.pipeline.errors import InputError
from sidrec.sft import train
from sidrec.sft.hub import NOT_UPLOADED, HubRepository
from sidrec.sft.settings import SftTrainerConfig
from sidrec.sft.training_arguments import trl_arguments


class StandIn:
    """Records what is asked of huggingface_hub's HfApi; `fails` is raised by `whoami`."""

    calls: ClassVar[list[tuple]] = []
    fails: ClassVar[Exception | None] = None

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def whoami(self) -> dict[str, str]:
        if StandIn.fails is not None:
            raise StandIn.fails
        return {"name": "me"}

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        StandIn.calls.append(("create", name, private, self.token))

    def upload_folder(self, repo_id: str, folder_path: Path, ignore_patterns: list[str], commit_message: str):
        names = {path.name for path in Path(folder_path).iterdir()}
        StandIn.calls.append(("upload", repo_id, self.token, names))
        assert ignore_patterns == NOT_UPLOADED
        return SimpleNamespace(commit_url="https://hub/commit")


@pytest.fixture(autouse=True)
def calls(monkeypatch) -> list[tuple]:
    monkeypatch.setattr(StandIn, "calls", [])
    monkeypatch.setattr(StandIn, "fails", None)
    monkeypatch.setattr("sidrec.sft.hub.HfApi", StandIn)
    return StandIn.calls


def asked(**changed: object) -> SimpleNamespace:
    chosen = {"push_to_hub": True, "hub_model_id": "me/model", "hub_private_repo": None, "hub_token": None}
    return SimpleNamespace(**chosen | changed)


def test_one_upload_of_the_finished_folder(tmp_path, calls, capsys, monkeypatch):
    for method in ("init_hf_repo", "push_to_hub", "_push_from_checkpoint"):
        monkeypatch.setattr(Trainer, method, lambda *_, **__: pytest.fail("the trainer must not upload"))
    run_dir = make_run_dir(tmp_path / "run")
    flags = {"push_to_hub": "true", "hub_model_id": "me/model", "hub_token": "hf_very_secret"}
    run_stage(train, run_dir, max_steps=4, **flags)
    for path in (run_dir / "sft").rglob("*"):
        assert path.name != "training_args.bin"
        assert path.is_dir() or b"hf_very_secret" not in path.read_bytes(), path
        assert path.is_dir() or path.name == "log.txt" or bytes(tmp_path) not in path.read_bytes(), path
    assert bytes(tmp_path) not in (run_dir / ".hashes.json").read_bytes()
    assert [call[0] for call in calls] == ["create", "upload"]
    assert calls[0] == ("create", "me/model", True, "hf_very_secret")
    _, name, _, files = calls[1]
    assert name == "me/model"
    assert files >= {"model.safetensors", "config.json", "tokenizer.json", "semantic_ids", "sidrec.json", "README.md"}
    assert "checkpoints" not in files
    assert "uploaded: https://hub/commit" in capsys.readouterr().out


def test_a_finished_model_is_uploaded_without_training(tmp_path_factory, tmp_path, calls):
    run_dir = shutil.copytree(finished_sft_run(tmp_path_factory), tmp_path / "run")
    assert run_stage(train, run_dir, push_to_hub="true", hub_model_id="model", hub_private_repo="false") is None
    assert [call[:2] for call in calls] == [("create", "model"), ("upload", "model")]
    assert calls[0][2] is False


def test_nothing_is_asked_of_the_hub_without_the_flag(calls):
    assert HubRepository.asked_for(asked(push_to_hub=False)) is None
    assert calls == []


def test_the_trainer_is_not_told_and_the_token_is_passed_on(calls, tmp_path):
    training = SftTrainerConfig(push_to_hub=True, hub_model_id="me/model", hub_token="secret", bf16=False, use_cpu=True)
    repository = HubRepository.asked_for(training)
    arguments = trl_arguments(SFTConfig, training, tmp_path)
    assert arguments.push_to_hub is False
    assert "secret" not in str(vars(arguments))
    assert calls == [("create", "me/model", True, "secret")]
    assert repository == HubRepository("me/model", True, "secret")
    assert "secret" not in repr(repository)


@pytest.mark.parametrize(
    ("changed", "failure", "sentence"),
    [
        ({"hub_model_id": None}, None, "hub_model_id is not given"),
        ({"hub_model_id": "a/b/c"}, None, "hub_model_id='a/b/c' is no repository's name"),
        ({}, LocalTokenNotFoundError("no token"), "needs a token of the hub"),
        ({}, OfflineModeIsEnabled("offline"), r"cannot be written to \(offline\); check"),
    ],
)
def test_what_would_fail_after_hours_is_refused_before(monkeypatch, calls, changed, failure, sentence):
    monkeypatch.setattr(StandIn, "fails", failure)
    with pytest.raises(InputError, match=sentence):
        HubRepository.asked_for(asked(**changed))
    assert calls == []

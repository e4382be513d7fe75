"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder, made once from the GGUF file of its package."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import let_others_read
from sidrec.pipeline.packaged_models import INSTALL, PACKAGED_MODELS, cache_folder, packaged_path
from sidrec.pipeline.screen import Screen

NAME = "smollm2-135m"
OF_GGUF = (
    "quantization_config",
    "_model_name_or_path",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "architectures",
    "transformers_version",
)
UNKNOWN, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def smollm_folder(screen: Screen | None = None) -> Path:
    """The folder `smollm2-135m` of the cache, with weights in float32 (540 MB) and the tokenizer; made where it is not there.

    Processes that ask at once wait for one of them. Raises InputError where the packages are not installed.
    """
    folder = cache_folder() / NAME
    if folder.is_dir():
        return folder
    file = packaged_path(NAME, "model_name_or_path")
    try:
        importlib.metadata.version("gguf")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"model_name_or_path={NAME} needs the package gguf to read its file, which is not installed; run `{INSTALL}`."
        ) from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{NAME}.lock")):
        if not folder.is_dir():
            write_plain_llama(file, folder, screen)
    return folder


def write_plain_llama(file: Path, folder: Path, screen: Screen | None = None, layers: int | None = None) -> None:
    """Read a GGUF file of a Llama into a plain `LlamaForCausalLM`, and save it with its tokenizer; whole or not at all.

    layers: the first so many alone, None: all.
    """
    screen = screen or Screen("", quiet=True)
    screen.say(f"making {folder} from {file.name}, once (a minute or two)")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with screen.bar(NAME, 3, "parts") as bar:
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            bar.advance(1, "tokenizer")
            some = {} if layers is None else {"num_hidden_layers": layers}
            read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, **some)
            bar.advance(1, "weights")
            config = LlamaConfig(
                **{name: value for name, value in read.config.to_dict().items() if name not in OF_GGUF}
            )
            plain = LlamaForCausalLM(config)
            plain.load_state_dict(read.state_dict())
            plain.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            let_others_read(temporary / "model.safetensors")
            (temporary / "README.md").write_text(card(), encoding="utf-8")
            bar.advance(1, "saved")
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def card() -> str:
    """The folder's README.md: whose model it is, under which licence."""
    model = PACKAGED_MODELS[NAME]
    return (
        f"---\nlibrary_name: transformers\nlicense: {model.licence}\nbase_model: {model.public_name}\n---\n\n"
        f"{model.public_name}, {model.changed}.\n"
    )

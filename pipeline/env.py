"""Versions and machine as one block to paste into a bug report: `sidrec env`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import psutil

from sidrec.pipeline.provenance import code_version, machine

PACKAGES = (
    *(
        "sidrec",
        "torch",
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "deepspeed",
        "tokenizers",
        "safetensors",
    ),
    *("huggingface_hub", "polars", "numpy", "scipy", "scikit-learn", "matplotlib"),
)
OPTIONAL = {
    "sentence-transformers": "text encoders: pip install 'sidrec[text]'",
    "gguf": "sidrec export: pip install 'sidrec[export]'",
    "onnx": "sidrec export: pip install 'sidrec[export]'",
    "faiss-cpu": "benchmarks: pip install 'sidrec[bench]'",
}
COMPILERS = ("g++", "c++", "ninja")
GIB = 2**30


def main(arguments: Sequence[str] | None = None) -> None:
    if any(word in ("-h", "--help", "--help-all") for word in (sys.argv[1:] if arguments is None else arguments)):
        sys.stdout.write("Print versions and machine as one block, to paste into a bug report. There are no flags.\n")
        return
    sys.stdout.write("\n".join(lines()) + "\n")


def lines() -> list[str]:
    """One `name: value` a line."""
    memory = psutil.virtual_memory()
    compilers = [name for name in COMPILERS if shutil.which(name)]
    missing = ", ".join(name for name in COMPILERS if name not in compilers)
    facts = {
        "sidrec": code_version(),
        "python": f"{platform.python_version()} at {sys.executable}",
        "system": platform.platform(),
        "machine": machine(),
        "memory": f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB free",
        "threads": os.environ.get("OMP_NUM_THREADS", "all cores (OMP_NUM_THREADS is not set)"),
        "compiler": ", ".join(compilers) + (f"; not found: {missing} (needed by DeepSpeed)" if missing else ""),
        "packages": ", ".join(f"{name} {installed(name) or 'missing'}" for name in PACKAGES[1:]),
        "optional": ", ".join(
            f"{name} {installed(name) or f'not installed ({use})'}" for name, use in OPTIONAL.items()
        ),
    }
    return [f"{name}: {value}" for name, value in facts.items()]


def installed(package: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Where figures come from: the commit of the code, the versions, the machine, the hashes of the data."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from sidrec.pipeline.files import read_json

RECORDED_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "polars", "numpy", "scikit-learn")
ROOT = Path(__file__).resolve().parent.parent
NAMED_FILES = {
    "data": ("items.parquet", "interactions.parquet"),
    "sid": ("codes_all.npy",),
    "sft": ("model.safetensors",),
    "rl": ("model.safetensors",),
}


def code_version() -> str:
    """The git commit of this code, and whether files differ from it; the package's version where it is no repository of its own."""
    if Path(_git("rev-parse", "--show-toplevel") or os.sep).resolve() != ROOT:
        return f"sidrec {version('sidrec')}"
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"commit {_git('rev-parse', 'HEAD')}{' with changes' if changed else ''}"


def _git(*arguments: str) -> str:
    """What git prints about the folder of this code; nothing where git or its repository is not there."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> str:
    """Processor, the cores that this process may use, GPUs, operating system."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    processor = model.group(1) if model else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{processor}, {cores} cores, {' + '.join(gpus) if gpus else 'no GPU'}, {platform.system()}"


def software() -> str:
    """Python and the packages that decide results."""
    packages = ", ".join(f"{name} {version(name)}" for name in RECORDED_PACKAGES)
    return f"Python {platform.python_version()}, {packages}"


def file_hashes(run_dir: Path) -> dict[str, str]:
    """sha256 of the data, the semantic IDs and the models, by path, as the manifests of the run's stages recorded them."""
    hashes: dict[str, str] = {}
    for stage, names in NAMED_FILES.items():
        manifest = run_dir / stage / "manifest.json"
        outputs = read_json(manifest)["outputs"] if manifest.exists() else {}
        hashes |= {f"{stage}/{name}": outputs[name]["sha256"] for name in names if name in outputs}
    return hashes

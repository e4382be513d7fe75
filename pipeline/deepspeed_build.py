"""The part of DeepSpeed that is compiled at its first start on a CPU: built under a lock that ends with its process.

torch's own lock of an extension is an empty file that a killed compiler leaves behind, and for which every later start waits without end.
So the extension lies in a directory of this project's, a file lock is held while it is compiled or loaded, and whoever holds it knows that
torch's file is nobody's.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen

COMPILERS = {"ninja": "pip install ninja", "c++": "apt install g++"}


def is_asked_for() -> bool:
    """Whether accelerate's configuration names DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def leave_deepspeed_out() -> None:
    """Keep accelerate from importing DeepSpeed, seconds and a warning, to see whether a model is one of its engines: none is."""
    import accelerate.utils.other

    accelerate.utils.other.is_deepspeed_available = lambda: False


def cache_folder() -> Path:
    """Where extensions for this Python and this torch are kept."""
    import torch

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return cache / "sidrec" / "torch_extensions" / f"{python}-torch{torch.__version__}"


def build_deepspeed(screen: Screen) -> None:
    """Compile what DeepSpeed needs here, or load it where it is compiled; called before DeepSpeed starts.

    Does nothing unless accelerate's configuration names DeepSpeed; nothing is compiled for GPUs. Raises InputError when a program that
    compiles is missing.
    """
    if not is_asked_for():
        leave_deepspeed_out()
        return
    # programs of the environment are found although it is not activated
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        from deepspeed.accelerator import get_accelerator

        builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or get_accelerator()._name != "cpu":
        return
    refuse_missing_compiler()
    if not any(folder.rglob("*.so")):
        screen.say("deepspeed: compiling its communication between processes, once (a minute or two)")
    with build_lock(folder, screen), contextlib.redirect_stdout(io.StringIO()):
        builder.load(verbose=False)


def refuse_missing_compiler() -> None:
    """Raise InputError naming the program that DeepSpeed compiles with and that is not installed."""
    for program, remedy in COMPILERS.items():
        command = os.environ.get("CXX", program) if program == "c++" else program
        if shutil.which(command) is None:
            raise InputError(
                f"DeepSpeed compiles a part of itself on a machine without a GPU, and the program `{command}` is missing; install it "
                f"(`{remedy}`), or use `--config_file configs/accelerate/two_processes.yaml`."
            )


@contextlib.contextmanager
def build_lock(folder: Path, screen: Screen) -> Iterator[None]:
    """Hold the right to compile in `folder`; torch's lock files that dead compilers have left there are swept."""
    from filelock import FileLock

    with FileLock(folder / ".building"):
        for stale in folder.glob("*/lock"):
            stale.unlink()
            screen.say(f"deepspeed: {stale} was left by a compiler that was killed, and is removed")
        yield

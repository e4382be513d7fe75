"""A bundle: one folder with all that recommending needs, to be copied anywhere: model, semantic IDs, items and, of a blend, its memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from sidrec.baselines.blend import BLENDS, Blend, load_blend
from sidrec.baselines.memory import Memory
from sidrec.decoding.product import Expert
from sidrec.decoding.recommender import SIDS_FOLDER, Recommender
from sidrec.pipeline.files import write_json
from sidrec.pipeline.stage import read_manifest
from sidrec.serving.about import ABOUT, FORMAT_VERSION, ITEMS, copy_encoders, read_about
from sidrec.serving.versions import current_folder, live_catalogue
from sidrec.tokenizer.semantic_ids import SemanticIds

MEMORY = "memory.safetensors"
CARD = "README.md"  # which an evaluation may change
OF_TRAINING = ("adapter/", "valid.json")  # in a model's folder, and of no use to whoever recommends


@dataclass(frozen=True)
class Bundle:
    """items: as in `items.parquet` of the data, all columns, removed items too. name: of the model, such as sft_blend."""

    recommender: Recommender
    items: pl.DataFrame
    sids: SemanticIds
    name: str

    @property
    def titles(self) -> list[str]:
        """Title of item i at index i."""
        return self.items["title"].to_list()

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """With the current version of its catalogue. Raises InputError where it is no bundle, an older one, or a file of it has changed."""
        about, catalogue = read_about(folder), current_folder(folder)
        recommender, sids = Recommender.from_folder(folder), SemanticIds.read(catalogue / SIDS_FOLDER)
        if catalogue != folder:
            recommender = replace(recommender, catalogue=live_catalogue(catalogue, sids, recommender.model.device))
        if about["weight"] is not None:
            recommender = replace(recommender, expert=Expert(Memory.load(folder / MEMORY), about["weight"]))
        return cls(recommender, pl.read_parquet(catalogue / ITEMS, glob=False), sids, about["model"])


def trained_model(run_dir: Path, name: str) -> Recommender | Blend:
    """A run's model by its name. Raises InputError where it, or the evaluation of a blend, is missing or has changed."""
    return load_blend(run_dir, name) if name in BLENDS else Recommender.load(run_dir, name)


def write_bundle(model: Recommender, run_dir: Path, name: str, folder: Path) -> None:
    """Write the files of a bundle into `folder`. model: the run's, of that name, as `trained_model` gives it."""
    model_folder = run_dir / BLENDS.get(name, name)
    outputs = (read_manifest(model_folder) or {"outputs": {}})["outputs"]
    for file in [*(file for file in outputs if not file.startswith(OF_TRAINING)), CARD]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model_folder / file, folder / file)
    shutil.copyfile(run_dir / "data" / ITEMS, folder / ITEMS)
    if model.expert is not None:
        assert isinstance(model.expert.memory, Memory)
        model.expert.memory.save(folder / MEMORY)
    weight = None if model.expert is None else model.expert.weight
    about = {"format_version": FORMAT_VERSION, "model": name, "weight": weight} | copy_encoders(run_dir, folder)
    write_json(folder / ABOUT, about)

"""A bundle: one folder with all that recommending needs, to be copied anywhere: model, semantic IDs, items, how often each was taken in
training and, of a blend, its memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from sidrec.baselines.blend import BLENDS, Blend, load_blend
from sidrec.baselines.memory import Memory
from sidrec.data.dataset import Dataset
from sidrec.decoding.product import Expert
from sidrec.decoding.recommender import SIDS_FOLDER, Recommender
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.arrays import read_npy
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json
from sidrec.pipeline.stage import read_manifest
from sidrec.serving.about import ABOUT, FORMAT_VERSION, ITEMS, copy_encoders, encoder_files, read_about
from sidrec.serving.cold_rows import TEXT, ColdRows
from sidrec.serving.versions import current_folder, live_catalogue
from sidrec.tokenizer.semantic_ids import SemanticIds, sid_token

MEMORY, TRAINING_COUNTS = "memory.safetensors", "training_counts.npy"
CARD = "README.md"  # which an evaluation may change
OF_TRAINING = ("adapter/", "valid.json")  # in a model's folder, and of no use to whoever recommends


@dataclass(frozen=True)
class Bundle:
    """What answers requests. items: as in `items.parquet` of the data, all columns, removed items too. name: of the model, such as
    sft_blend. training_counts: int64 [N], how often each item was taken in the training log. cold_rows: what texts say of embeddings, and
    encoders: the folder of what encodes texts; None where the model or the vectors are of another kind."""

    recommender: Recommender | Blend
    items: pl.DataFrame
    sids: SemanticIds
    name: str
    training_counts: np.ndarray
    cold_rows: ColdRows | None = None
    encoders: Path | None = None

    @property
    def titles(self) -> list[str]:
        """Title of item i at index i."""
        return self.items["title"].to_list()

    @property
    def trie(self) -> SidTrie:
        """Of the catalogue at this moment."""
        return self.first_recommender.trie

    @property
    def first_recommender(self) -> Recommender:
        """The one that answers, or of an ensemble the first."""
        if isinstance(self.recommender, Recommender):
            return self.recommender
        first = self.recommender.recommenders[0]
        assert isinstance(first, Recommender)
        return first

    @property
    def of_one_model(self) -> Recommender:
        """Raises InputError where an ensemble answers, whose scores are of what may be recommended and not of every item."""
        if not isinstance(self.recommender, Recommender):
            raise InputError(
                f"{self.name} is of several models, and a bias of cold items or a temperature is of one; name one of them."
            )
        return self.recommender

    @cached_property
    def is_cold(self) -> np.ndarray:
        """bool [N]: the items that were never taken in training."""
        return self.training_counts == 0

    @cached_property
    def of_cold(self) -> Recommender:
        """What ranks cold items among themselves: the recommender, in which they have the embeddings that their texts say, where it can.

        Raises InputError as `load_encoders` and an encoder do.
        """
        if self.cold_rows is None or self.encoders is None:
            return self.of_one_model
        from sidrec.tokenizer.embeddings.encoders import (
            load_encoders,
        )  # with scikit-learn, for which others do not wait

        texts = self.items["text"].fill_null("").filter(pl.Series(self.is_cold)).to_list()
        vectors = load_encoders(self.encoders)[TEXT].encode(texts)
        return self.cold_rows.applied(self.of_one_model, self.sids.codes[self.is_cold], vectors)

    @cached_property
    def most_taken(self) -> np.ndarray:
        """int64 [N]: the items, most taken in training first; of equal ones the lower index."""
        return np.argsort(-self.training_counts, kind="stable")

    @cached_property
    def index_of(self) -> dict[str, int]:
        """The index of every item_id."""
        return {name: index for index, name in enumerate(self.items["item_id"])}

    @cached_property
    def shelf(self) -> pl.DataFrame:
        """What a list says of item i in row i: item_id, title, sid, and cold: whether it was never taken in training."""
        names = [
            pl.Series([sid_token(level, code) for code in range(size)])
            for level, size in enumerate(self.sids.level_sizes)
        ]
        tokens = pl.DataFrame({str(level): every[self.sids.codes[:, level]] for level, every in enumerate(names)})
        sid, cold = tokens.select(pl.concat_str(pl.all())).to_series(), pl.Series(self.training_counts == 0)
        return self.items.select("item_id", "title", sid=sid, cold=cold)

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """With the current version of its catalogue. Raises InputError where it is no bundle, one of another format, or a file of it has
        changed."""
        about, catalogue = read_about(folder), current_folder(folder)
        recommender, sids = Recommender.from_folder(folder), SemanticIds.read(catalogue / SIDS_FOLDER)
        if catalogue != folder:
            recommender = replace(recommender, catalogue=live_catalogue(catalogue, sids, recommender.model.device))
        if about["weight"] is not None:
            recommender = replace(recommender, expert=Expert(Memory.load(folder / MEMORY), about["weight"]))
        items, counts = pl.read_parquet(catalogue / ITEMS, glob=False), read_npy(folder / TRAINING_COUNTS)
        counts = np.pad(counts, (0, len(items) - len(counts)))  # later items were not there in training
        return cls(recommender, items, sids, about["model"], counts, ColdRows.load(folder), folder)

    def at_version(self, catalogue: Path) -> Bundle:
        """With the catalogue of a version's folder; the model and the memory are shared."""
        first, sids = self.first_recommender, SemanticIds.read(catalogue / SIDS_FOLDER)
        items = pl.read_parquet(catalogue / ITEMS, glob=False)
        counts = np.zeros(len(items), dtype=self.training_counts.dtype)
        shared = min(len(counts), len(self.training_counts))
        counts[:shared] = self.training_counts[:shared]
        recommender = replace(first, catalogue=live_catalogue(catalogue, sids, first.model.device))
        return replace(self, recommender=recommender, items=items, sids=sids, training_counts=counts)

    @classmethod
    def of_run(cls, run_dir: Path, name: str, dataset: Dataset) -> Bundle:
        """A run's model by its name, beside its items. dataset: of the run. Raises InputError as `trained_model` does."""
        sids, model, counts = SemanticIds.load(run_dir), trained_model(run_dir, name), training_counts(dataset)
        cold_rows = None
        if isinstance(model, Recommender) and (counts == 0).any():
            cold_rows = ColdRows.of_run(run_dir, model, counts)
        return cls(model, dataset.items, sids, name, counts, cold_rows, run_dir / "embeddings")


def trained_model(run_dir: Path, name: str) -> Recommender | Blend:
    """A run's model by its name. Raises InputError where it, or the evaluation of a blend, is missing or has changed."""
    return load_blend(run_dir, name) if name in BLENDS else Recommender.load(run_dir, name)


def training_counts(dataset: Dataset) -> np.ndarray:
    """int64 [N]: the training interactions of each item."""
    train = dataset.interactions.filter(pl.col("split") == "train")
    return np.bincount(train["item_index"].to_numpy(), minlength=dataset.n_items)


def last_trained(run_dir: Path) -> str:
    """ "rl" where that stage is finished, else "sft"."""
    manifest = read_manifest(run_dir / "rl")
    return "rl" if manifest is not None and manifest["finished"] else "sft"


def write_bundle(model: Recommender, run_dir: Path, name: str, folder: Path) -> None:
    """Write the files of a bundle into `folder`. model: the run's, of that name, as `trained_model` gives it."""
    model_folder = run_dir / BLENDS.get(name, name)
    outputs = (read_manifest(model_folder) or {"outputs": {}})["outputs"]
    for file in [*(file for file in outputs if not file.startswith(OF_TRAINING)), CARD]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model_folder / file, folder / file)
    shutil.copyfile(run_dir / "data" / ITEMS, folder / ITEMS)
    counts = training_counts(Dataset.load(run_dir))
    np.save(folder / TRAINING_COUNTS, counts)
    if encoder_files(run_dir) and (cold_rows := ColdRows.of_run(run_dir, model, counts)) is not None:
        cold_rows.save(folder)
    if model.expert is not None:
        assert isinstance(model.expert.memory, Memory)
        model.expert.memory.save(folder / MEMORY)
    weight = None if model.expert is None else model.expert.weight
    about = {"format_version": FORMAT_VERSION, "model": name, "weight": weight} | copy_encoders(run_dir, folder)
    write_json(folder / ABOUT, about)

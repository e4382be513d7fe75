"""A bundle of random weights, to serve what no one has trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.random_catalogues import random_model, random_sids
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.decoding.trie_file import SIDS_FOLDER, TRIE_FILE, save_trie
from sidrec.pipeline.files import write_json
from sidrec.pipeline.stage import Stage
from sidrec.serving.about import ABOUT, FORMAT_VERSION, ITEMS
from sidrec.serving.bundle import TRAINING_COUNTS

MAX_ITEMS = 200  # of a history that the model is given


def write_random_bundle(folder: Path, n_items: int, layers: int, seed: int) -> Path:
    """Items `item 0`, `item 1`, … under random semantic IDs, each with a price, and an RQ-Transformer; the folder."""
    sids, rng = random_sids(n_items, seed), np.random.default_rng(seed)
    model, vocabulary = random_model(sids, "marginal", seed, layers)
    names = [f"item {index}" for index in range(n_items)]
    items = pl.DataFrame({"item_id": names, "item_index": range(n_items), "title": names, "text": names})
    stage = Stage(folder.parent, folder.name, {"seed": seed}, working=())
    with stage.building(overwrite=True) as building:
        model.save_pretrained(building)
        Renderer.build(sids, vocabulary, MAX_ITEMS).save(building)
        sids.save(building / SIDS_FOLDER)
        save_trie(SidTrie(torch.from_numpy(sids.codes), sids.level_sizes), building / SIDS_FOLDER / TRIE_FILE)
        items.with_columns(price=rng.integers(1, 100, n_items)).write_parquet(building / ITEMS)
        np.save(building / TRAINING_COUNTS, rng.integers(0, 50, n_items))
        about = {"format_version": FORMAT_VERSION, "model": "random", "weight": None}
        write_json(building / ABOUT, about | {"sources": None, "text_columns": None})
    return stage.folder


def random_events(n_users: int, mean_items: int, n_items: int, seed: int) -> dict[str, list[str]]:
    """Of every user the item ids of a random history, oldest first, of 3 items or more."""
    rng = np.random.default_rng(seed)
    lengths = 3 + rng.exponential(mean_items - 3, n_users).astype(int)
    return {
        f"user {number}": [f"item {item}" for item in rng.integers(0, n_items, length)]
        for number, length in enumerate(lengths)
    }

"""How long new items take from a shop's file to recommendable, and whether each of them is.

python -m benchmarks.new_items
python -m benchmarks.new_items --items 1000 --new 100

A catalogue of the demo's kind (`data/synthetic.py`), drawn again and again until it has enough items, each draw with words of its own
numbers; an RQ-Transformer of a few steps, since what it knows does not matter here; a bundle. Then `sidrec add-items` adds the items that
were held back, as a process of its own. seconds: its processor seconds, the start of Python and the imports included; wall_seconds: by the
clock. reachable: the share of the new items whose probability is above 0 for every history asked, by scoring the whole catalogue;
recommended: the share of them that a list as long as the catalogue has. The last line is one JSON object.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.harness import (
    EMBED,
    PREPARE,
    QUANTIZE,
    SFT,
    announce,
    check_at_least,
    cost_of,
    plain_console,
    print_figures,
    run_stage,
)
from sidrec.data.synthetic import DemoModel
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.serving.bundle import Bundle

BUNDLE, ADD_ITEMS = ["-m", "sidrec", "bundle"], ["-m", "sidrec", "add-items"]
USERS_A_DRAW = 40  # and 480 items
TRAINING = shlex.split(
    "--architecture rq_transformer --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --intermediate_size 48 --max_steps 4 "
    "--batch_items 512 --eval_strategy steps --eval_steps 4 --save_strategy steps --save_steps 4 --valid_users 20 --bf16 false "
    "--use_cpu true --disable_tqdm true"
)


@dataclass
class NewItemsConfig:
    """Add items to a bundle's catalogue, and measure the time and the share that can be recommended."""

    items: int = field(default=10_000, metadata={"help": "Items of the catalogue before."})
    new: int = field(default=1_000, metadata={"help": "Items that are added."})
    users: int = field(default=20, metadata={"help": "Histories that are asked."})
    threads: int = field(default=1, metadata={"help": "Threads of every stage."})
    seed: int = field(default=0, metadata={"help": "Seed of the first draw of the catalogue."})

    def __post_init__(self) -> None:
        check_at_least(1, new=self.new, users=self.users, threads=self.threads)
        check_at_least(2, items=self.items)


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(NewItemsConfig, arguments), plain_console()
    announce(console, "new_items", arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shop(folder, config)
        run_dir = folder / "run"
        run_dir.mkdir()
        files = ["--interactions", str(folder / "log.csv"), "--items", str(folder / "items.csv")]
        keep_all = ["--dataset", "own", "--k_user", "1", "--k_item", "1", "--keep_untaken_items", "true"]
        quantizer = ["--quantizer", "rqkmeans", "--unique", "assign"]
        stages = [
            [*PREPARE, *files, *keep_all],
            [*EMBED, *quantizer],
            [*QUANTIZE, *quantizer],
            [*SFT, *TRAINING],
            BUNDLE,
        ]
        for stage in stages:
            console.print(shlex.join(stage[:4]))
            run_stage(stage, run_dir, config.threads)
        start = time.monotonic()
        adding = [sys.executable, *ADD_ITEMS, str(folder / "new.csv"), "--bundle", str(run_dir / "bundle")]
        seconds = cost_of(adding, folder / "log.txt", config.threads).cpu_seconds
        wall_seconds = time.monotonic() - start
        reachable, recommended = shares(run_dir / "bundle", config)
    console.print(
        f"{config.new:,} items added to {config.items:,}: {seconds:.1f} processor seconds, {wall_seconds:.1f} s by the clock; "
        f"{reachable:.1%} have a probability above 0, {recommended:.1%} stand in a list of all"
    )
    figures = {"items": config.items, "new": config.new, "threads": config.threads, "seconds": seconds}
    print_figures(
        figures | {"wall_seconds": round(wall_seconds, 1), "reachable": reachable, "recommended": recommended}
    )


def write_shop(folder: Path, config: NewItemsConfig) -> None:
    """log.csv and items.csv of the first items, new.csv with the others: of draws of the demo's model, one after the other."""
    tables: list[pl.DataFrame] = []
    logs: list[pl.DataFrame] = []
    n_items = 0
    while n_items < config.items + config.new:
        draw, seed = len(tables), config.seed + len(tables)
        raw = DemoModel(seed=seed, n_users=USERS_A_DRAW).generate()
        items = raw.items.with_columns(
            item_id=pl.lit(f"{draw}-") + pl.col("item_id"), title=pl.col("title") + pl.lit(f", volume {draw + 1}")
        )
        names = {name: pl.lit(f"{draw}-") + pl.col(name).cast(pl.String) for name in ("user_id", "item_id")}
        tables.append(items)
        logs.append(raw.interactions.with_columns(**names))
        n_items += len(items)
    items = pl.concat(tables)[np.random.default_rng(config.seed).permutation(n_items)]
    old, new = items[: config.items], items[config.items : config.items + config.new]
    old.write_csv(folder / "items.csv")
    new.write_csv(folder / "new.csv")
    log = pl.concat(logs)
    log.filter(pl.col("item_id").is_in(old["item_id"].implode())).write_csv(folder / "log.csv")


def shares(folder: Path, config: NewItemsConfig) -> tuple[float, float]:
    """Of the new items: the share with a probability above 0 for every history, and the share in a list of the whole catalogue."""
    bundle, rng = Bundle.load(folder), np.random.default_rng(config.seed)
    histories = [rng.integers(0, config.items, 10) for _ in range(config.users)]
    trie = bundle.recommender.trie
    leaves = trie.leaf_of_item(torch.arange(config.items, trie.n_slots, device=trie.device))
    chances = bundle.first_recommender.leaf_log_probs(histories)[:, leaves].exp()
    lists = bundle.recommender.recommend(histories[:1], len(bundle.items), exclude_seen=False)
    assert len(leaves) == config.new, f"{len(leaves)} new items, not {config.new}"
    return float((chances > 0).all(dim=0).double().mean()), float((lists.items[0] >= config.items).sum() / config.new)


if __name__ == "__main__":
    run_as_command(main)

"""Small valid files of every format that the project reads from others, each with the command that reads it."""

from __future__ import annotations

import gzip
import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.small_run import N_ITEMS, write_raw
from sidrec.pipeline.files import write_json
from sidrec.tokenizer.semantic_ids import tokens_by_item

USERS = 12


@dataclass(frozen=True)
class Reader:
    """A command, {} in it the folder of its files, which are named below that. starts_from: stages that the run directory has. has_run:
    whether it takes one."""

    name: str
    command: str
    files: tuple[str, ...]
    starts_from: tuple[str, ...] = ()
    has_run: bool = True

    def on(self, folder: Path, run_dir: Path) -> list[str]:
        words = [word.replace("{}", str(folder)) for word in shlex.split(self.command)]
        return [*words, "--run_dir", str(run_dir)] if self.has_run else words


OWN = "-m sidrec prepare --dataset own --k_user 1 --k_item 1 --interactions"
PUBLISHED = "-m sidrec prepare --k_user 1 --k_item 1 --raw_dir {} --dataset"
QUANTIZED = "-m sidrec.tokenizer.quantize --sources {}/vectors.npy --weights 1"
READERS = (
    Reader("own CSV", f"{OWN} {{}}/log.csv --items {{}}/items.csv", ("log.csv", "items.csv")),
    Reader("own gzip", f"{OWN} {{}}/log.csv.gz --items {{}}/items.csv", ("log.csv.gz",)),
    Reader("own Parquet", f"{OWN} {{}}/log.parquet --items {{}}/items.parquet", ("log.parquet", "items.parquet")),
    Reader("MovieLens 100K", f"{PUBLISHED} ml-100k", ("u.data", "u.item")),
    Reader("MovieLens 1M", f"{PUBLISHED} ml-1m", ("ratings.dat", "movies.dat")),
    Reader("MovieLens CSV", f"{PUBLISHED} ml-latest-small", ("ratings.csv", "movies.csv")),
    Reader(
        "Amazon 2014",
        f"{PUBLISHED} amazon-2014 --category Beauty",
        ("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"),
    ),
    Reader(
        "MiniOneRec",
        f"{PUBLISHED} minionerec --category Toys",
        ("train/Toys.csv", "valid/Toys.csv", "test/Toys.csv", "index/Toys.item.json"),
    ),
    Reader("YAML", "-m sidrec.tokenizer.embed --config {}/tokenizer.yaml", ("tokenizer.yaml",), ("data",)),
    Reader("vectors", f"{QUANTIZED} --level_sizes 8 8", ("vectors.npy",), ("data",)),
    Reader(
        "given codes",
        f"{QUANTIZED} --quantizer given --codes_file {{}}/codes.npy --codebooks_file {{}}/codebooks.npz",
        ("codes.npy", "codebooks.npz"),
        ("data",),
    ),
    Reader(
        "codes, MiniOneRec's",
        "-m sidrec.tokenizer.interchange --read_file {}/codes.index.json --write_file {}/out.npy",
        ("codes.index.json",),
        has_run=False,
    ),
    Reader(
        "codes",
        "-m sidrec.tokenizer.interchange --read_file {}/codes.npy --write_file {}/out.index.json",
        ("codes.npy",),
        has_run=False,
    ),
    Reader(
        "sets of semantic IDs",
        "-m sidrec compare-sids --sids {}/codes.npy {}/codes.index.json --names a b --vectors {}/vectors.npy --weights 1 --out {}/out",
        ("codes.npy", "codes.index.json", "vectors.npy"),
        has_run=False,
    ),
)


def write_foreign(folder: Path) -> None:
    """The files of `READERS`."""
    write_raw(folder)
    log, items = (pl.read_csv(folder / name, glob=False) for name in ("log.csv", "items.csv"))
    log.write_parquet(folder / "log.parquet")
    items.write_parquet(folder / "items.parquet")
    with (folder / "log.csv").open("rb") as source, gzip.open(folder / "log.csv.gz", "wb") as packed:
        shutil.copyfileobj(source, packed)
    few = [(int(user[1:]) + 1, int(item[1:]) + 1, time) for user, item, time in log.rows() if int(user[1:]) < USERS]
    _write_movielens(folder, few)
    _write_amazon(folder, few)
    _write_minionerec(folder, few)
    _write_codes(folder)


def _write_movielens(folder: Path, log: list[tuple[int, int, int]]) -> None:
    films = range(1, N_ITEMS + 1)
    flags = "|".join("01"[place == 3] for place in range(19))
    _write(folder / "u.data", [f"{user}\t{item}\t4\t{time}" for user, item, time in log])
    _write(folder / "u.item", [f"{film}|Café {film} (1995)|01-Jan-1995||http://x|{flags}" for film in films], "latin-1")
    _write(folder / "ratings.dat", [f"{user}::{item}::4::{time}" for user, item, time in log])
    _write(folder / "movies.dat", [f"{film}::Café {film} (1995)::Drama|War" for film in films], "latin-1")
    _write(folder / "ratings.csv", ["userId,movieId,rating,timestamp", *(f"{u},{i},4.0,{t}" for u, i, t in log)])
    _write(
        folder / "movies.csv",
        ["movieId,title,genres", *(f'{film},"Film {film}, The (1995)",Drama|War' for film in films)],
    )


def _write_amazon(folder: Path, log: list[tuple[int, int, int]]) -> None:
    reviews = [{"reviewerID": f"A{u}", "asin": f"B{i}", "overall": 5.0, "unixReviewTime": t} for u, i, t in log]
    items = [
        {"asin": f"B{item}", "title": f"Comb {item}", "categories": [["Beauty", "Hair"]], "price": 6.99}
        for item in range(1, N_ITEMS + 1)
    ]
    for name, lines in (
        ("reviews_Beauty_5", [json.dumps(row) for row in reviews]),
        ("meta_Beauty", [repr(row) for row in items]),
    ):
        (folder / f"{name}.json.gz").write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))


def _write_minionerec(folder: Path, log: list[tuple[int, int, int]]) -> None:
    header = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid"
    rows: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user in sorted({user for user, _, _ in log}):
        items = [item - 1 for who, item, _ in log if who == user][:6]
        for place in range(1, len(items)):
            part = "test" if place == len(items) - 1 else "valid" if place == len(items) - 2 else "train"
            history, item = items[:place], items[place]
            rows[part].append(
                f'{user},"{[f"Item {i}" for i in history]}",Item {item},"{history}",{item},"[]",<a_{item}>'
            )
    for part, lines in rows.items():
        (folder / part).mkdir()
        _write(folder / part / "Toys.csv", [header, *lines])
    (folder / "index").mkdir()
    items_text = {
        str(i): {"title": f"Item {i}", "description": "['One.']", "brand": "B", "categories": ""}
        for i in range(N_ITEMS)
    }
    (folder / "index" / "Toys.item.json").write_text(json.dumps(items_text), encoding="utf-8")


def _write_codes(folder: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 8, (N_ITEMS, 2)).astype(np.int32)
    np.save(folder / "codes.npy", codes)
    np.save(folder / "vectors.npy", rng.standard_normal((N_ITEMS, 8)).astype(np.float32))
    first, second = rng.standard_normal((2, 8, 8))
    np.savez(folder / "codebooks.npz", codebook_0=first, codebook_1=second)
    write_json(folder / "codes.index.json", tokens_by_item(codes))
    _write(
        folder / "tokenizer.yaml",
        ["sources: [text, collaborative]", "weights: [0.5, 1.0]", "text_dim: 8", "collaborative_dim: 8", "seed: 3"],
    )


def _write(file: Path, lines: list[str], encoding: str = "utf-8") -> None:
    file.write_text("\n".join(lines) + "\n", encoding=encoding)

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
from benchmarks.store_damages import write_store
from sidrec.evaluation.rank_file import RankFile
from sidrec.pipeline.files import write_json
from sidrec.serving.export_lists import lists_table
from sidrec.serving.store import Store
from sidrec.tokenizer.semantic_ids import tokens_by_item

USERS = 12


@dataclass(frozen=True)
class Reader:
    """A command, {} in it the folder of its files, which are named below that, and {run} the run directory. starts_from: folders that this
    has. has_run: whether it is named by --run_dir. writes: what the command changes in those folders."""

    name: str
    command: str
    files: tuple[str, ...]
    starts_from: tuple[str, ...] = ()
    has_run: bool = True
    writes: tuple[str, ...] = ()

    def on(self, folder: Path, run_dir: Path) -> list[str]:
        words = [word.replace("{run}", str(run_dir)).replace("{}", str(folder)) for word in shlex.split(self.command)]
        return [*words, "--run_dir", str(run_dir)] if self.has_run else words


OWN = "-m sidrec prepare --dataset own --k_user 1 --k_item 1 --interactions"
PUBLISHED = "-m sidrec prepare --k_user 1 --k_item 1 --raw_dir {} --dataset"
QUANTIZED = "-m sidrec.tokenizer.quantize --sources {}/vectors.npy --weights 1"
MODEL = ("data", "embeddings", "sid", "sft")
TO_USERS = "-m sidrec recommend --bundle {run}/bundle --output {}/out.csv"
ADD = "-m sidrec add-items --bundle {run}/bundle --items"
COMPARE = "-m sidrec compare {run}:sft {run}:sft --newest 1"
OF_STORE = "-m sidrec {} --store {{}}/store.db"
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
    Reader(
        "untaken items",
        f"{OWN} {{}}/log.csv --items {{}}/items.csv --keep_untaken_items true --encoding utf-8",
        ("log.csv", "items.csv"),
    ),
    Reader("recommend: log", f"{TO_USERS} --log {{}}/log.csv --all_users", ("log.csv",), ("bundle",), False),
    Reader(
        "recommend: log, Parquet",
        f"{TO_USERS} --log {{}}/log.parquet --all_users",
        ("log.parquet",),
        ("bundle",),
        False,
    ),
    Reader(
        "recommend: users", f"{TO_USERS} --log {{}}/log.csv --users {{}}/users.txt", ("users.txt",), ("bundle",), False
    ),
    Reader(
        "recommend: users, CSV",
        f"{TO_USERS} --log {{}}/log.csv --users {{}}/users.csv",
        ("users.csv",),
        ("bundle",),
        False,
    ),
    *(
        Reader(
            f"add-items: {kind}", f"{ADD} {{}}/new.{kind}", (f"new.{kind}",), ("bundle",), False, ("bundle/catalogue",)
        )
        for kind in ("csv", "jsonl", "parquet")
    ),
    Reader("update: log", "-m sidrec update --passes 0.1 --interactions {}/later.csv", ("later.csv",), MODEL),
    Reader("compare: log", f"{COMPARE} --log {{}}/later.csv", ("later.csv",), MODEL, False),
    Reader("compare: ranks", "-m sidrec compare ranks {}/a.ranks {}/b.ranks", ("a.ranks",), has_run=False),
    Reader("drift: store", "-m sidrec drift --store {}/store.db", ("store.db",), MODEL),
    Reader(
        "export-events: store",
        f"{OF_STORE.format('export-events')} --output {{}}/out.csv",
        ("store.db",),
        has_run=False,
    ),
    Reader(
        "export-lists: store",
        f"{OF_STORE.format('export-lists')} --output {{}}/out.jsonl",
        ("store.db",),
        has_run=False,
    ),
    Reader("keys: store", f"{OF_STORE.format('keys')} --list true", ("store.db",), has_run=False),
    Reader(
        "serve: store", "-m sidrec serve {run}/bundle --store {}/store.db --port 0", ("store.db",), ("bundle",), False
    ),
    *(
        Reader(
            f"off-policy: {kind}",
            f"-m sidrec off-policy --model sft --log {{}}/served.{kind}",
            (f"served.{kind}",),
            MODEL,
        )
        for kind in ("jsonl", "parquet")
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
    _write_of_service(folder, log)


def _write_of_service(folder: Path, log: pl.DataFrame) -> None:
    """What comes to a model that is used: users to ask about, new items, new events, a store and the lists in it."""
    users = log["user_id"].unique(maintain_order=True).to_list()[:USERS]
    _write(folder / "users.txt", users)
    _write(folder / "users.csv", ["user_id,name", *(f"{user},Ann" for user in users)])
    new = pl.DataFrame({"item_id": ["n1", "n2", "i5"], "title": ["tea number 90", "drum number 91", "boot number 1"]})
    new.write_csv(folder / "new.csv")
    new.write_ndjson(folder / "new.jsonl")
    new.write_parquet(folder / "new.parquet")
    rng = np.random.default_rng(1)
    later = [
        (user, f"i{item}", 1_600_000_000 + 60 * place)
        for place in range(4)
        for user, item in zip(users, rng.permutation(N_ITEMS), strict=False)
    ]
    pl.DataFrame(later, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "later.csv")
    for name in ("a", "b"):
        RankFile(name, True, "cases", np.arange(30), rng.integers(0, 50, (2, 30)).astype(np.uint8)).save(
            folder / f"{name}.ranks"
        )
    write_store(folder / "store.db")
    with Store.in_use(str(folder / "store.db"), must_exist=True) as store:
        served = lists_table(store, "event", 24.0)
    served.write_ndjson(folder / "served.jsonl")
    served.write_parquet(folder / "served.parquet")


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

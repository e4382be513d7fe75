import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from sidrec.data import build as build_module
from sidrec.data.amazon import EDITIONS
from sidrec.data.build import build, catalogue, copy_first_rows, find_inputs, in_window
from sidrec.data.dataset import Dataset
from sidrec.data.movielens import FILES
from sidrec.data.prepare import main
from sidrec.data.settings import AMAZON, MOVIELENS, PrepareConfig
from sidrec.data.summary import KNOWN_COUNTS
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen

ROOT = Path(__file__).parents[2]


def prepare(*arguments: str | Path) -> None:
    main([*map(str, arguments)])


@pytest.fixture
def own_files(tmp_path: Path) -> list[str | Path]:
    """Arguments for a log of 4 users by 5 items, a rare item (x) and one that nobody took (y)."""
    rows = [f"u{u},i{i},{10 * i + u}" for u in range(4) for i in range(5)]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join([*rows, "u0,x,99"]) + "\n")
    items = [f"i{i},Title {i}" for i in (4, 2, 0, 1, 3)]
    (tmp_path / "items.csv").write_text("item_id,title\n" + "\n".join([*items, "x,Rare", "y,Never"]) + "\n")
    files = ["--interactions", tmp_path / "log.csv", "--items", tmp_path / "items.csv"]
    return ["--dataset", "own", *files, "--run_dir", tmp_path / "run"]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_own_data_end_to_end(
    tmp_path: Path, own_files: list[str | Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(*own_files, "--k_user", "3", "--k_item", "3")
    dataset = Dataset.load(tmp_path / "run")
    assert dataset.items.columns == ["item_id", "item_index", "title", "text"]
    assert dataset.items["item_id"].to_list() == ["i4", "i2", "i0", "i1", "i3"]
    assert dataset.items["item_index"].to_list() == [0, 1, 2, 3, 4]
    assert dataset.interactions.columns == ["user_id", "item_index", "timestamp", "split"]
    assert dataset.interactions["item_index"].to_list() == [2, 3, 1, 4, 0] * 4
    assert dataset.interactions["split"].to_list() == ["train", "train", "train", "valid", "test"] * 4
    assert dataset.info == {
        "name": "own",
        "protocol": "leave_one_out",
        "seed": None,
        "k_core": {"k_user": 3, "k_item": 3},
        "counts": {
            "users": 4,
            "items": 5,
            "interactions": 20,
            "removed_interactions": 1,
            "train": 12,
            "valid": 4,
            "test": 4,
        },
        "read": {"interactions": 21, "users": 4, "items": 6, "catalogue": 7},
        "left_out": {"not_taken": {"items": 1}, "k_core": {"interactions": 1, "users": 0, "items": 1}},
        "medians": {"interactions_of_user": 5, "interactions_of_item": 4},
        "again": 0,
        "times": {"first": 0, "last": 43, "unit": None},
        "text": {"columns": ["title"], "left_out": {}, "untitled": 0, "without_text": 0},
        "files": [{"name": "log.csv", "bytes": 210}, {"name": "items.csv", "bytes": 84}],
        "notes": [],
    }
    printed = capsys.readouterr().out
    assert "100.000%" in printed
    assert "12 train, 4 valid, 4 test" in printed


def test_items_that_nobody_has_taken_are_kept_where_that_is_asked_for(
    tmp_path: Path, own_files: list[str | Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["--k_user", "3", "--k_item", "3"]
    prepare(*own_files, *plain)
    without = Dataset.load(tmp_path / "run")
    prepare(*own_files, *plain, "--keep_untaken_items", "true", "--overwrite", "true")
    dataset = Dataset.load(tmp_path / "run")
    assert dataset.items["item_id"].to_list() == ["i4", "i2", "i0", "i1", "i3", "x", "y"]
    assert dataset.items["item_index"].to_list() == list(range(7))
    assert dataset.interactions.equals(without.interactions), "the log is filtered as before"
    assert dataset.left_out.filter(pl.col("kind") == "item").is_empty()
    assert dataset.info["counts"] == without.info["counts"] | {"items": 7}
    assert dataset.info["left_out"] == {"k_core": {"interactions": 1, "users": 0}}
    assert "stay in the catalogue: 2;" in capsys.readouterr().out


def test_a_second_run_is_skipped_and_changes_are_refused(
    tmp_path: Path, own_files: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*own_files, "--k_user", "3", "--k_item", "3"]
    prepare(*arguments)
    before = snapshot(tmp_path / "run" / "data")
    with monkeypatch.context() as patch:
        patch.setattr("sidrec.data.build.build", lambda *_: pytest.fail("a finished stage was made again"))
        prepare(*arguments)
    with pytest.raises(InputError, match="k_item=3, not 2"):
        prepare(*own_files, "--k_user", "3", "--k_item", "2")
    assert snapshot(tmp_path / "run" / "data") == before
    prepare(*own_files, "--k_user", "3", "--k_item", "1", "--overwrite", "true")
    assert Dataset.load(tmp_path / "run").n_items == 6


def test_bad_input_never_costs_the_last_good_state(
    tmp_path: Path, own_files: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*own_files, "--k_user", "3", "--k_item", "3"]
    good = (tmp_path / "log.csv").read_text()
    (tmp_path / "log.csv").write_text(good + "u0,i0,soon\n")
    with pytest.raises(InputError, match=r"log\.csv row 22"):
        prepare(*arguments)
    (tmp_path / "log.csv").write_text(good)  # mended: no --overwrite needed
    prepare(*arguments)
    before = snapshot(tmp_path / "run" / "data")
    (tmp_path / "log.csv").write_text(good + "u0,i0,soon\n")
    with pytest.raises(InputError, match=r"log\.csv row 22"):
        prepare(*arguments, "--overwrite", "true")
    assert snapshot(tmp_path / "run" / "data") == before


def test_nothing_left_after_k_core(own_files: list[str | Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no interaction is left of 21.*lower --k_user or --k_item"):
        prepare(*own_files)


def test_demo_is_the_same_bytes_twice_and_has_two_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("--run_dir", tmp_path / "a")
    prepare("--run_dir", tmp_path / "b")
    assert snapshot(tmp_path / "a" / "data") == snapshot(tmp_path / "b" / "data")
    prepare("--run_dir", tmp_path / "c", "--protocol", "global_time", "--seed", "1")
    info = json.loads((tmp_path / "c" / "data" / "dataset.json").read_text())
    assert info["demo_model"]["seed"] == info["seed"] == 1
    counts = info["counts"]
    n = counts["interactions"]
    wanted = (8 * n // 10, 9 * n // 10 - 8 * n // 10, n - 9 * n // 10)
    assert (counts["train"], counts["valid"], counts["test"]) == wanted


def test_text_is_readable_and_one_line() -> None:
    items = pl.DataFrame(
        {
            "item_id": ["b", "unused", "a"],
            "title": [" Toy\nStory (1995)", "-", "St. Elmo."],
            "genres": ["Animation,  Comedy.", "-", ""],
            "price": [1.5, 2.5, 3.5],
            "tags": [["x", None, "y"], [], None],
            "year": ["1995", "-", None],
        }
    )
    table, text = catalogue(items, pl.DataFrame({"item_id": ["a", "b", "a"]}))
    assert table["text"].to_list() == [
        "Toy Story (1995). genres: Animation, Comedy. price: 1.5. tags: x, y. year: 1995",
        "St. Elmo. price: 3.5",
    ]
    assert text["columns"] == ["title", "genres", "price", "tags", "year"]
    assert table["title"].to_list() == ["Toy Story (1995)", "St. Elmo."]
    assert table.select("item_id", "item_index").rows() == [("b", 0), ("a", 1)]
    assert table.columns == ["item_id", "item_index", "title", "text", "genres", "price", "tags", "year"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "own", "--items", "x.csv"], "needs --interactions"),
        (["--dataset", "own", "--interactions", "x.csv"], "needs --items"),
        (["--dataset", "demo", "--items", "x.csv"], "--items is for --dataset own"),
        (["--dataset", "demo", "--raw_dir", "x"], "--raw_dir is for a publisher's files"),
        (["--k_user", "-1"], "--k_user is -1"),
        (["--seed", "-1"], "seed is -1; it must be at least 0"),
        (["--dataset", "ml-100k", "--raw_dir", "/nowhere"], "/nowhere/u.data does not exist"),
        (["--dataset", "ml-20m", "--raw_dir", "/nowhere"], "/nowhere/ratings.csv does not exist"),
        (["--dataset", "amazon-2014", "--raw_dir", "/nowhere"], "amazon-2014 needs --category"),
        (["--dataset", "amazon-2014", "--category", "../x", "--raw_dir", "/nowhere"], "needs --category"),
        (
            ["--dataset", "amazon-2014", "--category", "Toys", "--raw_dir", "/nowhere"],
            "/nowhere holds no reviews_Toys_5",
        ),
        (["--dataset", "ml-1m", "--category", "Toys"], "--category is for amazon-"),
        (["--dataset", "minionerec", "--category", "Toys"], "minionerec needs --raw_dir"),
        (["--dataset", "minionerec", "--category", "Toys", "--raw_dir", "/nowhere"], "/nowhere holds no valid/Toys"),
        (["--dataset", "ml-1m", "--protocol", "published"], "--protocol published is for --dataset minionerec"),
        (["--dataset", "demo", "--from_date", "2016-10-01"], "--from_date is for ml-"),
        (["--dataset", "ml-1m", "--to_date", "October"], "--to_date is 'October'; write a day as 2016-10-01"),
        (
            ["--dataset", "ml-1m", "--from_date", "2018-01-01", "--to_date", "2017-12-31"],
            "--to_date 2017-12-31 lies before",
        ),
        (["--dataset", "own", "--interactions", "x.csv", "--items", "y.csv"], "x.csv does not exist"),
    ],
)
def test_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare("--run_dir", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_movielens_is_downloaded_only_without_raw_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("u.data", "u.item"):
        (tmp_path / name).write_text("x")
    monkeypatch.setattr("sidrec.data.build.fetch_movielens", lambda name, _: tmp_path if name == "ml-100k" else None)
    files = (tmp_path / "u.data", tmp_path / "u.item")
    assert find_inputs(PrepareConfig(run_dir=tmp_path, dataset="ml-100k")) == files
    monkeypatch.setattr("sidrec.data.build.fetch_movielens", lambda *_: pytest.fail("downloaded for nothing"))
    assert find_inputs(PrepareConfig(run_dir=tmp_path, dataset="ml-100k", raw_dir=tmp_path)) == files


def test_the_source_folder_is_no_run_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepare.py").write_text("precious")
    with pytest.raises(InputError, match="no stage made"):
        prepare("--run_dir", tmp_path, "--overwrite", "true")
    assert snapshot(tmp_path / "data") == {"prepare.py": b"precious"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_config_files_fit_the_code(path: Path) -> None:
    arguments = ["--config", str(path)]
    if path.stem == "own":
        arguments += ["--interactions", "x.csv", "--items", "y.csv"]
    config = parse_config(PrepareConfig, arguments)
    wanted = yaml.safe_load(path.read_text())
    paths = {name: Path(wanted[name]) for name in ("run_dir", "raw_dir") if name in wanted}
    assert {name: getattr(config, name) for name in wanted} == wanted | paths
    assert config.run_dir == Path("outputs") / path.stem
    given = ("category", "raw_dir", "interactions", "items")
    without_file = PrepareConfig(config.run_dir, config.dataset, **{name: getattr(config, name) for name in given})
    assert (config.k_user, config.k_item) == (without_file.k_user, without_file.k_item)


def test_the_real_ml_100k_keeps_every_user_and_item() -> None:
    if "SIDREC_DATASETS" not in os.environ:
        pytest.skip("SIDREC_DATASETS does not point at the folder with ml-100k/")
    folder = Path(os.environ["SIDREC_DATASETS"]) / "ml-100k"
    config = PrepareConfig(run_dir=Path("unused"), dataset="ml-100k", raw_dir=folder)
    dataset = build(config, find_inputs(config), Screen("data", quiet=True))
    counts = dataset.info["counts"]
    assert (counts["users"], counts["items"], counts["interactions"]) == (943, 1682, 100_000)
    assert (counts["train"], counts["valid"], counts["test"]) == (98_114, 943, 943)
    assert dataset.items["text"][0] == "Toy Story (1995). genres: Animation, Children's, Comedy. year: 1995"
    assert len(dataset.cases("test")) == 943


def movielens_csv(folder: Path, times: list[int]) -> list[str | Path]:
    """Arguments for two users who rated movies 1 to n at these times."""
    rows = [f"{user},{item},3.5,{time}" for user in (1, 2) for item, time in enumerate(times, 1)]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(rows) + "\n")
    titles = [f"{item},Movie {item} (1999),Drama" for item in range(1, len(times) + 1)]
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "\n".join(titles) + "\n")
    return ["--dataset", "ml-20m", "--raw_dir", folder, "--run_dir", folder / "run"]


def test_the_window_holds_both_days_and_comes_before_the_k_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, after = 1475280000, 1541116800  # 2016-10-01 00:00 and 2018-11-02 00:00, UTC
    arguments = movielens_csv(tmp_path, [first - 1, first, after - 1, after, first + 5])
    prepare(*arguments, "--from_date", "2016-10-01", "--to_date", "2018-11-01", "--k_user", "3")
    dataset = Dataset.load(tmp_path / "run")
    assert dataset.items["item_id"].to_list() == ["2", "3", "5"]
    assert dataset.interactions["timestamp"].to_list() == [first, first + 5, after - 1] * 2
    assert dataset.info["counts"]["removed_interactions"] == 0
    assert dataset.info["from_date"] == "2016-10-01"
    assert "outside the dates: 4 interactions, 0 users, 2 items" in capsys.readouterr().out
    with pytest.raises(InputError, match="from_date='2016-10-01', not '2016-10-02'"):
        prepare(*arguments, "--from_date", "2016-10-02", "--to_date", "2018-11-01", "--k_user", "3")
    with pytest.raises(InputError, match="no interaction lies between 2020-01-01 and the end"):
        prepare(*arguments, "--from_date", "2020-01-01", "--overwrite", "true")


def test_a_window_in_milliseconds() -> None:
    config = PrepareConfig(
        *(Path("run"), "amazon-2023"), category="Toys", raw_dir=Path("x"), from_date="1970-01-02", to_date="1970-01-02"
    )
    day = 86_400_000
    log = pl.DataFrame({"timestamp": [day - 1, day, 2 * day - 1, 2 * day]})
    assert in_window(log, config)["timestamp"].to_list() == [day, 2 * day - 1]


def test_known_counts_are_told_and_differences_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = movielens_csv(tmp_path, [1, 2, 3])
    prepare(*arguments)
    published = "138,493 users, 26,744 items, 20,000,263 interactions"
    assert f"Warning: the published counts are {published}, but these files gave 2, 3, 6;" in capsys.readouterr().out
    monkeypatch.setitem(KNOWN_COUNTS, ("ml-20m", None), (2, 3, 6))
    prepare(*arguments, "--overwrite", "true")
    assert "These are the published counts: 2 users, 3 items, 6 interactions." in capsys.readouterr().out
    prepare(*arguments, "--overwrite", "true", "--k_user", "2")
    assert "published counts" not in capsys.readouterr().out


def test_amazon_text_reaches_the_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = enumerate([("A", "B1"), ("A", "B2"), ("B", "B1"), ("B", "B2"), ("C", "B1"), ("C", "B3"), ("A", "B1")])
    reviews = [
        f'{{"reviewerID": "{user}", "asin": "{item}", "unixReviewTime": {time}}}\n' for time, (user, item) in times
    ]
    (tmp_path / "reviews_Toys_5.json").write_text("".join(reviews))
    meta = "{'asin': 'B2', 'title': 'Kite &amp; tail', 'brand': 'Acme', 'categories': [['Toys']], 'description': 'It\\'s red.'}\n"
    (tmp_path / "meta_Toys.json").write_text(meta)
    arguments = ["--dataset", "amazon-2014", "--category", "Toys", "--raw_dir", tmp_path, "--run_dir", tmp_path / "run"]
    with pytest.raises(InputError, match="no set of users has 5 interactions each"):
        prepare(*arguments)
    prepare(*arguments, "--k_user", "2", "--k_item", "2")
    dataset = Dataset.load(tmp_path / "run")
    assert dataset.items.select("item_id", "text").rows() == [
        ("B1", "B1"),
        ("B2", "Kite & tail. brand: Acme. categories: Toys. description: It's red"),
    ]
    assert dataset.interactions["item_index"].to_list() == [0, 1, 0, 0, 1]
    assert (dataset.info["category"], dataset.info["counts"]["removed_interactions"]) == ("Toys", 2)
    printed = capsys.readouterr().out
    assert "amazon-2014 Toys: 2 users" in printed
    assert "2 of 3 items have no title" in printed


def test_the_files_are_the_same_bytes_with_any_number_of_threads(tmp_path: Path) -> None:
    """Row groups are written by several threads; more than one row group is needed to see it."""
    for threads in ("1", "3"):
        command = [sys.executable, "-c", SAVE_LARGE, str(tmp_path / threads)]
        subprocess.run(command, check=True, env=os.environ | {"POLARS_MAX_THREADS": threads}, cwd=ROOT)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "3")


SAVE_LARGE = """
import sys
from pathlib import Path
import polars as pl
from sidrec.data.dataset import ROW_GROUP_ROWS, Dataset
n = 3 * ROW_GROUP_ROWS + 5
users = pl.int_range(n, eager=True) // 7
log = pl.DataFrame({"user_id": users.cast(pl.String).cast(pl.Categorical), "item_index": users % 11, "timestamp": users})
Path(sys.argv[1]).mkdir()
Dataset(pl.DataFrame({"item_id": ["a"]}), log, {}).save(Path(sys.argv[1]))
"""


def test_the_settings_name_the_readers_data_sets() -> None:
    assert set(AMAZON) == set(EDITIONS)
    assert set(MOVIELENS) == set(FILES)


def test_every_column_of_the_users_files_is_kept_beside_its_row(tmp_path: Path) -> None:
    """In Parquet with types; whatever the order of users and times."""
    log = pl.DataFrame(
        {
            "price": [3.5, 1.5, 2.5, 0.5],
            "user_id": ["b", "a", "b", "a"],
            "item_id": ["x", "x", "y", "y"],
            "channel": ["app", None, "web", "shop"],
            "timestamp": [4, 3, 2, 1],
        }
    )
    items = pl.DataFrame({"item_id": ["x", "y"], "title": ["X", "Y"], "stock": [7, 8], "text": ["long", "short"]})
    log.write_parquet(tmp_path / "log.parquet")
    items.write_parquet(tmp_path / "items.parquet")
    files = ["--interactions", tmp_path / "log.parquet", "--items", tmp_path / "items.parquet"]
    prepare("--dataset", "own", *files, "--run_dir", tmp_path / "run", "--k_user", "1", "--k_item", "1")
    dataset = Dataset.load(tmp_path / "run")
    assert dataset.interactions.select("user_id", "item_index", "timestamp", "price", "channel").rows() == [
        *(("a", 1, 1, 0.5, "shop"), ("a", 0, 3, 1.5, None)),
        *(("b", 1, 2, 2.5, "web"), ("b", 0, 4, 3.5, "app")),
    ]
    assert dataset.items.select("item_id", "stock", "text", "given_text").rows() == [
        *(("x", 7, "X. stock: 7. text: long", "long"), ("y", 8, "Y. stock: 8. text: short", "short"))
    ]


@pytest.mark.parametrize(("table", "column"), [("log", "split"), ("log", "item_index"), ("items", "item_index")])
def test_columns_that_the_stage_writes_are_refused(tmp_path: Path, table: str, column: str) -> None:
    names = {"log": "user_id,item_id,timestamp", "items": "item_id,title"}
    rows = {"log": "u,x,1", "items": "x,X"}
    for name in names:
        more = ("," + column, ",1") if name == table else ("", "")
        (tmp_path / f"{name}.csv").write_text(f"{names[name]}{more[0]}\n{rows[name]}{more[1]}\n")
    files = ["--interactions", tmp_path / "log.csv", "--items", tmp_path / "items.csv"]
    with pytest.raises(InputError, match=rf"{table}\.csv: the column '{column}' is one that this command writes"):
        prepare("--dataset", "own", *files, "--run_dir", tmp_path / "run")


def test_a_moved_source_is_the_same_data_set_and_the_last_settings_count(
    tmp_path: Path, own_files: list[str | Path]
) -> None:
    prepare(*own_files, "--k_user", "3", "--k_item", "3")
    before = snapshot(tmp_path / "run" / "data")
    (tmp_path / "moved").mkdir()
    for name in ("log.csv", "items.csv"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    files = ["--interactions", tmp_path / "moved" / "log.csv", "--items", tmp_path / "moved" / "items.csv"]
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    prepare(*files, "--run_dir", tmp_path / "elsewhere")
    assert snapshot(tmp_path / "elsewhere" / "data") == before


def test_data_that_cannot_be_measured_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user needs three interactions for one of them to be valid and one test."""
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\na,x,1\na,y,2\nb,x,1\nb,y,2\n")
    (tmp_path / "items.csv").write_text("item_id,title\nx,X\ny,Y\n")
    files = ["--interactions", tmp_path / "log.csv", "--items", tmp_path / "items.csv"]
    prepare("--dataset", "own", *files, "--run_dir", tmp_path / "run", "--k_user", "1", "--k_item", "1")
    printed = capsys.readouterr().out
    assert "Warning: no interaction is valid" in printed
    assert "Warning: no interaction is test" in printed


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_large_log_is_rehearsed_on_its_first_rows_and_the_estimate_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    log = pl.DataFrame({"user_id": [n // 4 for n in range(6400)], "item_id": [n % 50 for n in range(6400)]})
    log = log.with_columns(timestamp=pl.int_range(pl.len()))
    file = tmp_path / f"log{suffix}"
    log.write_csv(file) if suffix == ".csv" else log.write_parquet(file)
    copy_first_rows(file, tmp_path / f"head{suffix}")
    head = (pl.read_csv if suffix == ".csv" else pl.read_parquet)(tmp_path / f"head{suffix}")
    assert 190 <= len(head) <= 300  # of 6,400; of a CSV by its bytes, and first rows are shorter
    assert head.equals(log[: len(head)])

    monkeypatch.setattr(build_module, "LARGE", 1000)
    monkeypatch.setattr(build_module, "LONG_SECONDS", 0)
    pl.DataFrame({"item_id": range(50), "title": ["a film"] * 50}).write_csv(tmp_path / "items.csv")
    arguments = ["--dataset", "own", "--interactions", str(file), "--items", str(tmp_path / "items.csv")]
    arguments += ["--k_user", "1", "--k_item", "1"]
    main([*arguments, "--run_dir", str(tmp_path / "run")])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"data: log{suffix}, ") and line.endswith(" to go") for line in lines) == 1
    assert pl.read_parquet(tmp_path / "run" / "data" / "interactions.parquet").height == 6400

    with (tmp_path / "items.csv").open("w") as items:
        items.write("item_id,title\n0,only one film\n")
    with pytest.raises(InputError, match=rf"log{suffix} row 2: user '0' took item '1', which is not in"):
        main([*arguments, "--run_dir", str(tmp_path / "other")])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_in_the_log_stay_beside_their_interaction(tmp_path: Path, kind: str) -> None:
    """Through the rule of repeats, the k-core, another order of users and items, and the split; with gaps, and decimal commas in a CSV."""
    rows = [
        (f"u{u}", f"i{i}", 100 - i, f"{u}.{i}5", 60 * i + u if i else None) for u in (3, 1, 2) for i in (4, 2, 0, 1)
    ]
    rows += [("u1", "i4", 96, "9.99", 7), ("u9", "i4", 1, "8.88", 8)]  # a repeat, and a user with too few
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "price", "dwell_seconds"], orient="row")
    file = tmp_path / f"log.{kind}"
    if kind == "csv":
        log.with_columns(pl.col("price").str.replace(".", ",", literal=True)).write_csv(file, separator=";")
    else:
        log.with_columns(pl.col("price").cast(pl.Decimal(6, 2))).write_parquet(file)
    (tmp_path / "items.csv").write_text("item_id;title\n" + "".join(f"i{i};Title {i}\n" for i in range(5)))
    files = ["--interactions", file, "--items", tmp_path / "items.csv"]
    prepare("--dataset", "own", *files, "--run_dir", tmp_path / "run", "--k_user", "2", "--k_item", "2")
    dataset = Dataset.load(tmp_path / "run")
    users = [int(user[1:]) for user in dataset.interactions["user_id"]]
    items = [int(dataset.items["item_id"][index][1:]) for index in dataset.interactions["item_index"]]
    assert list(zip(users, items, strict=True)) == [(u, i) for u in (1, 2, 3) for i in (4, 2, 1, 0)]
    assert dataset.values("price").tolist() == [float(f"{u}.{i}5") for u, i in zip(users, items, strict=True)]
    dwell = dataset.interactions.with_columns(seconds=pl.Series(dataset.values("dwell_seconds")).fill_nan(None))
    assert dwell["seconds"].to_list() == [60 * i + u if i else None for u, i in zip(users, items, strict=True)]
    assert dataset.cases("test", "price").values.tolist() == [1.05, 2.05, 3.05]
    with pytest.raises(
        InputError, match=r"run/data/interactions\.parquet has no column 'rating'.*price, dwell_seconds"
    ):
        dataset.values("rating")

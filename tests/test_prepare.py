import json
import os
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from data.config import parse_config
from data.dataset import Dataset
from data.prepare import PrepareConfig, build, catalogue, find_inputs, main
from data.stage import InputError

ROOT = Path(__file__).parent.parent


def prepare(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
    main()


@pytest.fixture
def own(tmp_path: Path) -> list[str | Path]:
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
    tmp_path: Path, own: list[str | Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(monkeypatch, *own, "--k_user", "3", "--k_item", "3")
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
        "files": [{"name": "log.csv", "bytes": 210}, {"name": "items.csv", "bytes": 84}],
        "notes": [],
    }
    printed = capsys.readouterr().out
    assert "100.000%" in printed
    assert "12 / 4 / 4" in printed


def test_a_second_run_is_skipped_and_changes_are_refused(
    tmp_path: Path, own: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*own, "--k_user", "3", "--k_item", "3"]
    prepare(monkeypatch, *arguments)
    before = snapshot(tmp_path / "run" / "data")
    with monkeypatch.context() as patch:
        patch.setattr("data.prepare.build", lambda *_: pytest.fail("a finished stage was made again"))
        prepare(patch, *arguments)
    with pytest.raises(InputError, match="k_item=3, not 2"):
        prepare(monkeypatch, *own, "--k_user", "3", "--k_item", "2")
    assert snapshot(tmp_path / "run" / "data") == before
    prepare(monkeypatch, *own, "--k_user", "3", "--k_item", "1", "--overwrite", "true")
    assert Dataset.load(tmp_path / "run").n_items == 6


def test_bad_input_never_costs_the_last_good_state(
    tmp_path: Path, own: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*own, "--k_user", "3", "--k_item", "3"]
    good = (tmp_path / "log.csv").read_text()
    (tmp_path / "log.csv").write_text(good + "u0,i0,soon\n")
    with pytest.raises(InputError, match=r"log\.csv row 22"):
        prepare(monkeypatch, *arguments)
    (tmp_path / "log.csv").write_text(good)  # mended: no --overwrite needed
    prepare(monkeypatch, *arguments)
    before = snapshot(tmp_path / "run" / "data")
    (tmp_path / "log.csv").write_text(good + "u0,i0,soon\n")
    with pytest.raises(InputError, match=r"log\.csv row 22"):
        prepare(monkeypatch, *arguments, "--overwrite", "true")
    assert snapshot(tmp_path / "run" / "data") == before


def test_nothing_left_after_k_core(own: list[str | Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no interaction is left of 21.*lower --k_user or --k_item"):
        prepare(monkeypatch, *own)


def test_demo_is_the_same_bytes_twice_and_has_two_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(monkeypatch, "--run_dir", tmp_path / "a")
    prepare(monkeypatch, "--run_dir", tmp_path / "b")
    assert snapshot(tmp_path / "a" / "data") == snapshot(tmp_path / "b" / "data")
    prepare(monkeypatch, "--run_dir", tmp_path / "c", "--protocol", "global_time", "--seed", "1")
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
    kept = catalogue(items, pl.DataFrame({"item_id": ["a", "b", "a"]}))
    assert kept["text"].to_list() == ["Toy Story (1995). genres: Animation, Comedy. tags: x, y. year: 1995", "St. Elmo"]
    assert kept["title"].to_list() == ["Toy Story (1995)", "St. Elmo."]
    assert kept.select("item_id", "item_index").rows() == [("b", 0), ("a", 1)]
    assert kept.columns == ["item_id", "item_index", "title", "text", "genres", "price", "tags", "year"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "own", "--items", "x.csv"], "needs --interactions"),
        (["--dataset", "own", "--interactions", "x.csv"], "needs --items"),
        (["--dataset", "demo", "--items", "x.csv"], "--items is for --dataset own"),
        (["--dataset", "demo", "--raw_dir", "x"], "--raw_dir is for a publisher's files"),
        (["--k_user", "-1"], "--k_user is -1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--dataset", "ml-100k", "--raw_dir", "/nowhere"], "/nowhere/u.data does not exist"),
        (["--dataset", "own", "--interactions", "x.csv", "--items", "y.csv"], "x.csv does not exist"),
    ],
)
def test_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(monkeypatch, "--run_dir", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_movielens_is_downloaded_only_without_raw_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("u.data", "u.item"):
        (tmp_path / name).write_text("x")
    monkeypatch.setattr("data.prepare.fetch_movielens", lambda name, _: tmp_path if name == "ml-100k" else None)
    files = (tmp_path / "u.data", tmp_path / "u.item")
    assert find_inputs(PrepareConfig(run_dir=tmp_path, dataset="ml-100k")) == files
    monkeypatch.setattr("data.prepare.fetch_movielens", lambda *_: pytest.fail("downloaded for nothing"))
    assert find_inputs(PrepareConfig(run_dir=tmp_path, dataset="ml-100k", raw_dir=tmp_path)) == files


def test_the_source_folder_is_no_run_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepare.py").write_text("precious")
    with pytest.raises(InputError, match="no stage made"):
        prepare(monkeypatch, "--run_dir", tmp_path, "--overwrite", "true")
    assert snapshot(tmp_path / "data") == {"prepare.py": b"precious"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_config_files_fit_the_code(path: Path) -> None:
    arguments = ["--config", str(path)]
    if path.stem == "own":
        arguments += ["--interactions", "x.csv", "--items", "y.csv"]
    config = parse_config(PrepareConfig, arguments)
    wanted = yaml.safe_load(path.read_text())
    assert {name: getattr(config, name) for name in wanted} == wanted | {"run_dir": Path(wanted["run_dir"])}
    assert config.run_dir == Path("outputs") / path.stem
    given = ("category", "raw_dir", "interactions", "items")
    without_file = PrepareConfig(config.run_dir, config.dataset, **{name: getattr(config, name) for name in given})
    assert (config.k_user, config.k_item) == (without_file.k_user, without_file.k_item)


def test_the_real_ml_100k_keeps_every_user_and_item() -> None:
    if "SIDREC_DATASETS" not in os.environ:
        pytest.skip("SIDREC_DATASETS does not point at the folder with ml-100k/")
    folder = Path(os.environ["SIDREC_DATASETS"]) / "ml-100k"
    config = PrepareConfig(run_dir=Path("unused"), dataset="ml-100k", raw_dir=folder)
    dataset = build(config, find_inputs(config))
    counts = dataset.info["counts"]
    assert (counts["users"], counts["items"], counts["interactions"]) == (943, 1682, 100_000)
    assert (counts["train"], counts["valid"], counts["test"]) == (98_114, 943, 943)
    assert dataset.items["text"][0] == "Toy Story (1995). genres: Animation, Children's, Comedy. year: 1995"
    assert len(dataset.cases("test")) == 943

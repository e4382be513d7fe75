import json
import os
import shutil
from pathlib import Path

import pytest

from sidrec.data.minionerec import find_minionerec, read_minionerec
from sidrec.pipeline.errors import InputError

HEADER = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"
NAME = "Toys_5_2016-10-2018-11"


def row(user: str, history: list[int], item: int) -> str:
    titles = str([f"Item, {i}" for i in history]).replace('"', '""')
    sids = [f"<a_{i}><b_0><c_0>" for i in history]
    return f'{user},"{titles}","Item, {item}","{history}",{item},"{sids}",<a_{item}><b_0><c_0>\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ann takes 0 1 0 2 2 3, Bob 4 0 1; all rows are in time order."""
    rows = {
        "train": row("Ann", [0], 1) + row("Bob", [4], 0) + row("Ann", [0, 1], 0) + row("Ann", [0, 1, 0], 2),
        "valid": row("Ann", [0, 1, 0, 2], 2),
        "test": row("Ann", [0, 1, 0, 2, 2], 3) + row("Bob", [4, 0], 1),
    }
    for part, text in rows.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{NAME}.csv").write_text(HEADER + text)
    items = {
        str(i): {"title": f"Item, {i}", "description": "['It\\'s one.', 'And two.']", "brand": "B", "categories": ""}
        for i in range(5)
    }
    items["4"] = {"title": "", "description": "[not a list", "brand": "", "categories": ["x", "y"]}
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "Toys.item.json").write_text(json.dumps(items))
    (tmp_path / "info").mkdir()
    (tmp_path / "info" / f"{NAME}.txt").write_text("".join(f"<a_{i}><b_0><c_0>\tItem, {i}\t{i}\n" for i in range(5)))
    return tmp_path


def sequences(folder: Path) -> dict[str, list[tuple[str, str]]]:
    log = read_minionerec(find_minionerec("Toys", folder)).interactions
    assert log["timestamp"].is_sorted()
    return {
        str(user): rows.select("item_id", "split").rows()
        for (user,), rows in log.group_by("user_id", maintain_order=True)
    }


def test_the_log_is_put_together_again(folder: Path) -> None:
    assert sequences(folder) == {
        "Ann": [("0", "train"), ("1", "train"), ("0", "train"), ("2", "train"), ("2", "valid"), ("3", "test")],
        "Bob": [("4", "train"), ("0", "train"), ("1", "test")],
    }


def test_histories_of_the_last_items_only_and_missing_rows(folder: Path) -> None:
    """The history is cut to its last two items, and the row that answers with the second 0 is missing."""
    cut = row("Ann", [0], 1) + row("Ann", [1, 0], 2)
    (folder / "train" / f"{NAME}.csv").write_text(HEADER + cut)
    (folder / "valid" / f"{NAME}.csv").write_text(HEADER + row("Ann", [0, 2], 2))
    assert sequences(folder)["Ann"][:5] == [(item, "train") for item in "0102"] + [("2", "valid")]


def test_text_and_what_is_no_text(folder: Path) -> None:
    raw = read_minionerec(find_minionerec("Toys", folder))
    assert raw.notes == ()
    assert raw.items.columns == ["item_id", "title", "brand", "categories", "description"]
    assert raw.items.row(0) == ("0", "Item, 0", "B", None, "It's one. And two.")
    assert raw.items.row(4) == ("4", "4", None, "x y", "[not a list")


def test_without_train_the_user_is_told(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    raw = read_minionerec(find_minionerec("Toys", folder))
    assert "has no file in train/" in raw.notes[0]
    assert [item for item, _ in sequences(folder)["Ann"]] == list("010223")


def test_without_item_json_titles_come_from_info(folder: Path) -> None:
    (folder / "index" / "Toys.item.json").unlink()
    raw = read_minionerec(find_minionerec("Toys", folder))
    assert raw.items.rows() == [(str(i), f"Item, {i}") for i in range(5)]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (f"valid/{NAME}.csv", None, r"holds no valid/Toys\*\.csv; .*--category Toys"),
        (f"test/{NAME}.csv", "a,b\n1,2\n", r"has no column 'user_id'; check that this is one of MiniOneRec's files"),
        (f"test/{NAME}.csv", HEADER + "Ann,,,x,3,,\n", r"row 1: history_item_id is 'x', not a list such as \[3, 14\]"),
        (
            f"test/{NAME}.csv",
            HEADER + row("Ann", [0], 77),
            r"row 1: item '77' is not in the catalogue",
        ),
        ("index/Toys.item.json", "{", r"Toys\.item\.json is not JSON"),
        ("index/Toys.item.json", "[]", r"does not map item numbers to objects"),
        ("index/Toys.item.json", '{"0": {"title": "x"}}', r"train.*row 1: item '1' is not in the catalogue"),
    ],
)
def test_wrong_files_are_one_sentence(folder: Path, file: str, content: str | None, words: str) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=words) as error:
        read_minionerec(find_minionerec("Toys", folder))
    assert "\n" not in str(error.value)


def test_the_real_industrial() -> None:
    if "SIDREC_DATASETS" not in os.environ:
        pytest.skip("SIDREC_DATASETS does not point at the folder with minionerec-industrial/")
    folder = Path(os.environ["SIDREC_DATASETS"]) / "minionerec-industrial"
    raw = read_minionerec(find_minionerec("Industrial_and_Scientific", folder))
    assert len(raw.items) == 3686
    counts = dict(raw.interactions["split"].cast(str).value_counts().rows())
    assert (counts["valid"], counts["test"]) == (4532, 4533)
    assert raw.items["description"].null_count() < len(raw.items)

"""`sidrec recommend`: whose history is asked about, what is shown, and what is said to a mistaken question."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from run_dirs import assert_one_sentence, exit_code, finished_sft_run, write_sid_stage
from transformers.utils import logging

from sidrec.baselines.blend import BLENDS
from sidrec.data.dataset import Dataset
from sidrec.decoding.recommender import STAGE_COMMANDS, Recommender
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import write_manifest
from sidrec.serving.bundle import last_trained
from sidrec.serving.history import find_title, history_of_items
from sidrec.serving.recommend import MODELS
from sidrec.serving.table import show

SCRIPT = "serving/recommend.py"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return finished_sft_run(tmp_path_factory)


@pytest.fixture
def ask(run_dir, capsys, monkeypatch):
    """Exit code, stdout and stderr of a question."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str, run_dir: Path = run_dir) -> tuple[int, str, str]:
        capsys.readouterr()
        code = exit_code(SCRIPT, "--run_dir", run_dir, *arguments)
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def shown_titles(output: str) -> list[str]:
    """Titles of the table's rows, best first."""
    return re.findall(r"^\W*\d+\W+(The \w+ \w+ \(\d{4}\))", output, re.MULTILINE)


def best_titles(run_dir: Path, history: list[int], k: int, exclude_seen: bool = True) -> list[str]:
    items = Recommender.load(run_dir, "sft").recommend([np.array(history)], k, exclude_seen).items[0]
    titles = Dataset.load(run_dir).titles
    return [titles[item] for item in items if item >= 0]


def test_a_user_by_id(run_dir, ask):
    dataset = Dataset.load(run_dir)
    rows = dataset.interactions.filter(dataset.interactions["user_id"] == "u7")
    code, out, _ = ask("--user", "u7", "--k", "5")
    assert code == 0
    history = rows["item_index"].to_list()
    assert f"{len(history) - 5} more" in out
    assert " → ".join(dataset.titles[item] for item in history[-5:]) in out
    titles = shown_titles(out)
    assert titles == best_titles(run_dir, history, 5)
    assert len(titles) == 5
    assert not set(titles) & {dataset.titles[item] for item in history}
    assert "sft model" in out
    probabilities = [float(number) for number in re.findall(r"([\d.]+)%", out)]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(re.findall(r"<a_\d><b_\d><c_\d>", out)) == 5


def test_a_history_of_parts_of_titles(run_dir, ask):
    code, out, _ = ask("--history", "red lamp", "THE RED BOOT", "the red drum (1980)", "--k", "3")
    assert code == 0
    assert "history: The red lamp (1980) → The red boot (1980) → The red drum (1980)" in out
    assert shown_titles(out) == best_titles(run_dir, [1, 2, 3], 3)
    code, out, _ = ask("--history", "red lamp", "--k", "60", "--keep_seen", "true")
    assert code == 0
    assert shown_titles(out) == best_titles(run_dir, [1], 60, exclude_seen=False)
    assert len(set(shown_titles(out))) == 60
    code, out, _ = ask("--history", "red lamp", "--k", "1000")
    assert code == 0
    assert len(shown_titles(out)) == 59
    sentence = "59 of the 1,000 asked for: the catalogue has 60 items, those of the history (1) are left out"
    assert sentence in out
    code, out, _ = ask("--history", "red lamp", "--k", "61", "--keep_seen", "true")
    assert "60 of the 61 asked for: the catalogue has 60 items." in out
    code, out, _ = ask("--history", "red lamp", "--k", "59")
    assert "asked for" not in out


def test_a_history_of_item_ids_and_titles(run_dir, ask):
    code, out, _ = ask("--history", "i1", "the red boot", " i3 ", "--k", "3")
    assert code == 0
    assert "history: The red lamp (1980) → The red boot (1980) → The red drum (1980)" in out
    assert shown_titles(out) == best_titles(run_dir, [1, 2, 3], 3)
    items = Dataset.load(run_dir).items
    for title in shown_titles(out):
        (item_id,) = items.filter(pl.col("title") == title)["item_id"]
        assert re.search(rf"{re.escape(title)}\s+{item_id}\s", out)


def test_what_is_an_items_id_is_no_title():
    items = pl.DataFrame({"item_id": ["7", "187"], "title": ["187 (1997)", "Seven"]})
    assert history_of_items(items, ["187", "7", "187 (1997)", "seven"]).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--history", "boot"],
            ["'boot' fits 6 items: The red boot (1980); The blue boot (1981)", "Type more of the title."],
        ),
        (["--history", "the"], ["fits 60 items", "; and 50 more."]),
        (["--history", "red lamp", "red lmap"], ["'red lmap' is no item_id and in no title", "The red lamp (1980)"]),
        (["--history", " "], ["an empty title was given"]),
        (["--user", "nobody"], ["--user nobody: no such user_id in", "the first ones are u0, u1, u2."]),
        (
            ["--user", "rare"],
            [
                "--user rare: this user was left out by the k-core (2 interactions; k_user 5, k_item 5)",
                "a lower --k_user",
            ],
        ),
        (
            ["--history", "red lamp", "Silver SPOON"],
            ["'Silver SPOON': the item i60 (The silver spoon (2001)) was left out by the k-core (1 interaction;"],
        ),
        (["--history", "silver bell"], ["(The silver bell (2002)) was left out, as nobody in the log has taken it"]),
        (["--history", "i60"], ["'i60': the item i60 (The silver spoon (2001)) was left out by the k-core"]),
        (["--history", "i99"], ["'i99' is no item_id and in no title"]),
        (["--user", "u1", "--history", "red lamp"], ["give one of --user ID, --users FILE"]),
        ([], ["give one of --user ID, --users FILE"]),
        (["--bundle", "b", "--history", "i1"], ["give either --bundle b or --run_dir"]),
        (["--user", "u1", "--k", "0"], ["k=0 items cannot be recommended"]),
        (["--user", "u1", "--k", "-3"], ["k=-3 items cannot be recommended"]),
        (["--user", "u1", "--model", "rl"], ["holds no finished 'rl' stage; run `accelerate launch rl/grpo.py"]),
        (["--users", "u1", "u2"], ["'u2' belongs to no flag"]),
        (["--users", "nowhere.txt"], ["nowhere.txt does not exist"]),
        (["--items", "i1,i99"], ["'i99' is no item_id of the catalogue; item ids are such as i9, i59"]),
        (["--items", "i1,i60"], ["the item i60 was left out by the k-core (1 interaction;"]),
        (["--titles", "i1"], ["'i1' is no item_id and in no title"]),
        (["--all-users", "--k", "3", "--next", "2"], ["give --k, for candidates, or --next"]),
        (["--all_users", "--diversity", "2", "--next", "2"], ["leave --diversity out"]),
        (["--all_users", "--output", "lists.xlsx"], ["--output lists.xlsx must end in .csv, .jsonl or .parquet"]),
        (["--all_users", "--output", "nowhere/lists.csv"], ["there is no folder nowhere; make it first"]),
        (["--all_users", "--next", "100000"], ["next=100000 items one after the other are too many"]),
        (["--all_users", "--k", str(2**63)], ["k is 9223372036854775808; it must be at most"]),
        (["--all_users", "--cold_share", "nan"], ["cold_share=nan is no share of lists"]),
        (["--user", "u1", "--cold_bias", "1e300"], ["cold_bias=1e+300 is no number of nats"]),
        (["--log", "nowhere.csv", "--all_users"], ["nowhere.csv does not exist"]),
        (["--log", "log.csv", "--items", "i1"], ["--log holds the histories of users"]),
        (
            ["--user", "u1", "--where", "colour = 3"],
            ["there is no column 'colour'", "item_id, item_index, title, text"],
        ),
    ],
    ids=lambda value: " ".join(value) or "nothing" if (value and value[0].startswith("--")) or not value else "",
)
def test_a_mistake_is_answered_with_one_sentence(ask, arguments, parts):
    code, out, err = ask(*arguments)
    assert code == 2
    assert shown_titles(out) == []
    assert_one_sentence(err)
    for part in parts:
        assert part in err


def test_a_run_without_a_model_or_with_other_sids(run_dir, ask, tmp_path):
    untrained = shutil.copytree(run_dir, tmp_path / "untrained", ignore=shutil.ignore_patterns("sft"))
    code, _, err = ask("--user", "u1", run_dir=untrained)
    assert code == 2
    assert_one_sentence(err)
    assert f"sft holds no finished 'sft' stage; run `accelerate launch sft/train.py --run_dir {untrained}` first" in err
    code, _, err = ask("--user", "u1", run_dir=tmp_path / "nowhere")
    assert code == 2
    assert_one_sentence(err)
    assert "holds no finished 'data' stage" in err
    changed = shutil.copytree(run_dir, tmp_path / "changed")
    write_sid_stage(changed, seed=1)
    code, _, err = ask("--user", "u1", run_dir=changed)
    assert code == 2
    assert_one_sentence(err)
    assert "made from another" in err


def rows_of_one(titles: list[str], probabilities: list[float]) -> pl.DataFrame:
    """What is answered to one history."""
    names = {"item_id": [f"i{place}" for place in range(len(titles))], "title": titles}
    columns = names | {"rank": range(1, len(titles) + 1), "score": np.log(probabilities)}
    sids = [f"<a_{place}>" for place in range(len(titles))]
    return pl.DataFrame(columns | {"sid": sids}).with_columns(
        user_id=pl.lit(None, pl.String), reason=pl.lit(None, pl.String), cold=False
    )


def test_titles_are_shown_as_they_are():
    """Square brackets and colons are marks of the library that prints."""
    titles = ["Soap [new] (1980)", "Shampoo [/b] 2 :heart: pack", "Comb [red]"]
    console = Console(file=io.StringIO(), width=200)
    show(rows_of_one([titles[2], *titles[:2]], [0.5, 0.25, 0.125]), titles[:2], "sft", console)
    out = console.file.getvalue()
    assert f"history: {titles[0]} → {titles[1]}" in out
    assert [title for line in out.splitlines() for title in titles if title in line and "%" in line] == [
        titles[2],
        *titles[:2],
    ]


def test_nothing_is_cut_on_a_narrow_screen():
    titles = ["A soap with a name that is longer than most screens are wide, " * 3, "Shampoo", "Comb"]
    console = Console(file=io.StringIO(), width=40)
    show(rows_of_one([titles[0], titles[2]], [0.5, 0.25]), [titles[1], titles[0]], "sft", console)
    out = console.file.getvalue()
    assert out.count(titles[0].strip()) == 2
    assert "<a_0>" in out
    assert "<a_1>" in out
    assert "50.00%" in out
    assert "…" not in out
    tables = [line for line in out.splitlines() if line.strip().startswith("─")]
    assert len(tables) == 1, "one table"


def test_the_model_that_is_asked(run_dir, tmp_path):
    assert (*STAGE_COMMANDS, *BLENDS) == MODELS
    assert last_trained(run_dir) == "sft"
    copied = shutil.copytree(run_dir, tmp_path / "run")
    shutil.copytree(copied / "sft", copied / "rl")
    assert last_trained(copied) == "rl"
    manifest = json.loads((copied / "rl" / "manifest.json").read_text())
    write_manifest(copied / "rl" / "manifest.json", manifest | {"finished": False})
    assert last_trained(copied) == "sft"


def test_the_whole_title_wins_over_titles_that_contain_it():
    titles = ["Alien (1979)", "Aliens (1986)", "Alien (1992) Cut", "Fargo (1996)", "Fargo (2014)"]
    assert find_title(titles, "alien") == 0
    assert find_title(titles, "ALIENS ") == 1
    assert find_title(titles, "fargo (2014)") == 4
    with pytest.raises(InputError, match=r"'fargo' fits 2 items: Fargo \(1996\); Fargo \(2014\)"):
        find_title(titles, "fargo")
    with pytest.raises(InputError, match=r"'alein' is no item_id and in no title; perhaps you mean: Alien \(1979\)"):
        find_title(titles, "alein")
    with pytest.raises(
        InputError,
        match=r"'sku/3' is no item_id and in no title; and none is near; titles are such as 'Alien \(1979\)'",
    ):
        find_title(titles, "sku/3")


def test_loading_a_model_prints_nothing_and_leaves_the_bars_of_others(run_dir, capfd):
    before = logging.is_progress_bar_enabled()
    capfd.readouterr()
    Recommender.load(run_dir, "sft")
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled() == before


def test_ids_and_titles_are_asked_for_apart(run_dir, ask):
    wanted = best_titles(run_dir, [1, 2, 3], 3)
    for words in (
        ["--items", "i1,i2,i3"],
        ["--items", "i1", "i2,", " i3"],
        ["--titles", "red lamp", "RED BOOT", "red drum"],
    ):
        code, out, err = ask(*words, "--k", "3")
        assert code == 0, err
        assert shown_titles(out) == wanted


def test_whoever_has_no_history_is_shown_what_is_popular(run_dir, ask):
    code, out, _ = ask("--items", "", "--k", "4")
    counts = Dataset.load(run_dir).interactions.filter(pl.col("split") == "train")["item_index"].value_counts()
    wanted = counts.sort(pl.col("count"), -pl.col("item_index"), descending=True)["item_index"].head(4)
    assert code == 0
    assert shown_titles(out) == [Dataset.load(run_dir).titles[item] for item in wanted]
    assert "next, by popularity" in out
    assert "no history, so what was most taken in training." in out


def test_a_table_a_user(run_dir, ask, tmp_path):
    (tmp_path / "users.txt").write_text("u7\nnobody\n\nu3\nu7\nrare\n", encoding="utf-8")
    code, out, _ = ask("--users", str(tmp_path / "users.txt"), "--k", "2")
    assert code == 0
    assert re.findall(r"^user: (\w+)", out, re.MULTILINE) == ["u7", "nobody", "u3", "rare"]
    assert len(shown_titles(out)) == 8
    assert "this user was left out by the k-core (2 interactions" in out
    assert (
        "2 of 4 users have no history, such as 'nobody' (this user is not in the data); their lists are what was most"
        in out
    )

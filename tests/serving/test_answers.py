"""Answers in bulk: one function behind command and Python, rows with reasons, files of three formats, logs of one's own."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from run_dirs import N_ITEMS, assert_one_sentence, exit_code, finished_rq_run, finished_sft_run

import sidrec
from sidrec import Recommender
from sidrec.data.dataset import Dataset
from sidrec.pipeline.errors import InputError
from sidrec.serving.answer import COLUMNS, Question, answer
from sidrec.serving.bundle import Bundle
from sidrec.serving.output import write_parts

RECOMMEND, BUNDLE, EVALUATE = "serving/recommend.py", "serving/make_bundle.py", "evaluation/evaluate.py"
EVERY_HISTORY = [np.array([0, 1, 2]), np.array([59]), np.zeros(0, np.int64), np.arange(57)]


@pytest.fixture(scope="module", params=["flat", "rq"])
def run_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a bundle."""
    run = tmp_path_factory.mktemp("answers") / "run"
    shutil.copytree((finished_sft_run if request.param == "flat" else finished_rq_run)(tmp_path_factory), run)
    assert exit_code(BUNDLE, "--run_dir", run) == 0
    return run


@pytest.fixture(scope="module")
def bundle(run_dir: Path) -> Bundle:
    return Bundle.load(run_dir / "bundle")


def same_rows(first: pl.DataFrame, second: pl.DataFrame) -> None:
    """Equal, but for the last bits of the scores."""
    assert_frame_equal(first.drop("score"), second.drop("score"))
    np.testing.assert_allclose(first["score"].to_numpy(), second["score"].to_numpy(), rtol=1e-5)


def test_bulk_is_one_by_one(bundle: Bundle) -> None:
    allowed = np.arange(N_ITEMS) % 3 > 0
    for question in (
        Question(5),
        Question(4, True, allowed, 2),
        Question(N_ITEMS, allowed=allowed),
        Question(6, ahead=True),
    ):
        together = answer(bundle, EVERY_HISTORY, question, ["a", "b", "c", "d"])
        apart = [
            answer(bundle, [history], question, [user]) for history, user in zip(EVERY_HISTORY, "abcd", strict=True)
        ]
        same_rows(together, pl.concat(apart))
        assert dict(together.schema) == COLUMNS


def test_rows_say_what_the_search_gave(bundle: Bundle) -> None:
    rows = answer(bundle, EVERY_HISTORY[:2], Question(5), ["a", "b"])
    lists = bundle.recommender.recommend(EVERY_HISTORY[:2], 5, exclude_seen=True)
    names = bundle.items["item_id"]
    assert rows["item_id"].to_list() == [names[int(item)] for item in lists.items.flatten()]
    assert rows["rank"].to_list() == [1, 2, 3, 4, 5] * 2
    assert rows["score"].to_list() == lists.log_probs.flatten().tolist()
    assert rows["sid"].to_list() == [bundle.sids.text(int(item)) for item in lists.items.flatten()]
    assert rows["reason"].null_count() == 10
    untaken = set(np.flatnonzero(bundle.training_counts == 0))
    assert rows["cold"].to_list() == [int(item) in untaken for item in lists.items.flatten()]


def test_a_short_list_says_why_in_every_row(bundle: Bundle) -> None:
    allowed = np.zeros(N_ITEMS, dtype=bool)
    allowed[[1, 2, 50]] = True
    rows = answer(bundle, [EVERY_HISTORY[0]], Question(10, allowed=allowed))
    said = "1 of the 10 asked for: the catalogue has 60 items, 3 of them pass the filter, those of the history (2) are left out"
    assert rows["item_id"].to_list() == ["i50"]
    assert rows["reason"][0].startswith(said)
    nothing = answer(bundle, [EVERY_HISTORY[0], EVERY_HISTORY[2]], Question(2, allowed=np.zeros(N_ITEMS, dtype=bool)))
    assert nothing.select("rank", "item_id", "score", "cold").null_count().row(0) == (2, 2, 2, 2)
    assert nothing["reason"][0] == "0 of the 2 asked for: the catalogue has 60 items, 0 of them pass the filter"
    assert nothing["reason"][1].startswith("no history, so what was most taken in training; 0 of the 2 asked for")


def test_a_huge_k_is_as_long_as_the_catalogue(bundle: Bundle) -> None:
    for question in (Question(10**12), Question(10**12, diversity=2), Question(10**12, ahead=True)):
        rows = answer(bundle, EVERY_HISTORY[2:], question)
        assert rows["reason"].null_count() == 0
        assert len(rows) <= N_ITEMS + 3


def test_items_ahead_are_recommended_one_after_the_other(bundle: Bundle) -> None:
    history, wanted = EVERY_HISTORY[0], []
    for _ in range(5):
        (best,) = bundle.recommender.recommend([history], 1, exclude_seen=True).items[0]
        wanted.append(f"i{best}")
        history = np.append(history, best)
    assert answer(bundle, EVERY_HISTORY[:1], Question(5, ahead=True))["item_id"].to_list() == wanted
    exhausted = answer(bundle, EVERY_HISTORY[3:], Question(5, ahead=True))
    assert sorted(exhausted["item_id"]) == ["i57", "i58", "i59"]
    assert exhausted["reason"][0].startswith("3 of the 5 asked for")
    with pytest.raises(InputError, match="diversity does not apply"):
        Question(5, ahead=True, diversity=2)


def test_the_fallback_is_popularity_under_filter_and_diversity(bundle: Bundle) -> None:
    allowed = np.arange(N_ITEMS) >= 20
    rows = answer(bundle, [EVERY_HISTORY[2]], Question(6, allowed=allowed, diversity=2))
    wanted: list[int] = []
    for item in sorted(range(N_ITEMS), key=lambda item: (-bundle.training_counts[item], item)):
        code = bundle.sids.codes[item, 0]
        if allowed[item] and sum(bundle.sids.codes[other, 0] == code for other in wanted) < 2:
            wanted.append(item)
    assert rows["item_id"].to_list() == [f"i{item}" for item in wanted[:6]]
    assert rows["score"].null_count() == len(rows)


def test_a_removed_item_is_in_no_answer(run_dir: Path) -> None:
    bundle = Bundle.load(run_dir / "bundle")
    popular = int(bundle.most_taken[0])
    bundle.recommender.catalogue.remove(np.array([popular]))
    rows = answer(bundle, EVERY_HISTORY[1:3], Question(N_ITEMS))
    assert f"i{popular}" not in rows["item_id"].to_list()
    assert len(rows) == 58 + 59


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_user_into_a_file(
    run_dir: Path, bundle: Bundle, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidrec.serving.answer.USERS_TOGETHER", 7)
    file = tmp_path / f"lists.{ending}"
    assert exit_code(RECOMMEND, "--run_dir", run_dir, "--all-users", "--k", "3", "--output", file) == 0
    read = {
        "csv": lambda: pl.read_csv(file, schema=COLUMNS, glob=False),
        "jsonl": lambda: pl.read_ndjson(file, schema=COLUMNS),
        "parquet": lambda: pl.read_parquet(file, glob=False),
    }
    log = Dataset.load(run_dir).interactions.group_by("user_id", maintain_order=True).agg("item_index")
    wanted = answer(
        bundle, [np.array(row) for row in log["item_index"].to_list()], Question(3), log["user_id"].to_list()
    )
    same_rows(read[ending](), wanted)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    def broken():
        yield pl.DataFrame({"title": ["A"]})
        raise RuntimeError

    for ending in ("csv", "jsonl", "parquet"):
        file = tmp_path / f"lists.{ending}"
        file.write_text("old")
        with pytest.raises(RuntimeError):
            write_parts(file, broken())
        assert file.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 3


def test_no_title_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    titles = ["=1+1", "+49", "-40 °C", "@SUM(A1)", "\tx", "a=b", "1-2", "", None, "'quoted"]
    ids = pl.Series("item_id", [f"={number}" for number in range(len(titles))])
    part = pl.DataFrame({"item_id": ids, "title": titles})
    for ending in ("csv", "jsonl"):
        assert write_parts(tmp_path / f"lists.{ending}", [part, part]) == 20
    with (tmp_path / "lists.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == [*ids, *ids]
    assert [row[1] for row in rows[:10]] == [f"'{title}" for title in titles[:5]] + ["a=b", "1-2", "", "", "'quoted"]
    assert pl.read_ndjson(tmp_path / "lists.jsonl")["title"].to_list() == [*titles, *titles]


def test_a_bundle_and_a_log_of_ones_own_give_the_runs_lists(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Dataset.load(run_dir).interactions.select(
        "user_id", item_id="i" + pl.col("item_index").cast(pl.String), timestamp="timestamp"
    )
    strangers = pl.DataFrame(
        {"user_id": ["u0", "z"], "item_id": ["gone", "gone"], "timestamp": [9, 9]}, schema=log.schema
    )
    pl.concat([strangers, log, log.head(5)]).sample(fraction=1, shuffle=True, seed=0).write_csv(tmp_path / "log.csv")
    pl.DataFrame({"user_id": ["u3", "z", "nobody", "u0"]}).write_parquet(tmp_path / "users.parquet")
    asked = ["--users", tmp_path / "users.parquet", "--k", "4"]
    capsys.readouterr()
    words = ["--bundle", run_dir / "bundle", "--log", tmp_path / "log.csv", *asked, "--output", tmp_path / "a.parquet"]
    assert exit_code(RECOMMEND, *words) == 0
    said = capsys.readouterr().out
    assert "2 of 4 users have no history, such as 'z' (the catalogue has no item of this user's)" in said
    assert "2 rows of items that the catalogue has not are left out of the histories" in said
    assert exit_code(RECOMMEND, "--run_dir", run_dir, *asked, "--output", tmp_path / "b.parquet") == 0
    by_bundle, by_run = (pl.read_parquet(tmp_path / name, glob=False) for name in ("a.parquet", "b.parquet"))
    same_rows(by_bundle.drop("reason"), by_run.drop("reason"))
    reasons = dict(by_bundle.group_by("user_id").agg(pl.col("reason").first()).iter_rows())
    assert reasons["u0"] is reasons["u3"] is None
    assert reasons["nobody"] == "this user is not in the log, so what was most taken in training"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("users.txt", "", "users.txt is empty"),
        ("users.txt", "\n \n", "has only empty lines; write one user_id a line"),
        ("users.txt", "ann\nb\0o\0b\n", "line 2 holds a zero byte, so it is no list of ids in UTF-8"),
        ("users.csv", "name\nann\n", "the columns user_id; add the columns' names"),
        ("users.csv", "user_id\n", "has a header but no rows"),
        ("users.csv", "user_id,n\nann,1\n,2\n", "row 2 has an empty user_id"),
        ("log.csv", "user_id,item_id\nann,i1\n", "has no column 'timestamp'"),
        ("log.csv", "user_id,item_id,timestamp\nann,i1,soon\n", "the timestamp 'soon' is neither"),
    ],
)
def test_a_file_that_does_not_fit_is_named(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    flags = ["--users", tmp_path / name] if name.startswith("users") else ["--log", tmp_path / name, "--all_users"]
    capsys.readouterr()
    assert exit_code(RECOMMEND, "--run_dir", run_dir, *flags, "--output", tmp_path / "lists.csv") == 2
    said = capsys.readouterr().err
    assert_one_sentence(said)
    assert words in said
    assert not (tmp_path / "lists.csv").exists()


def test_python_gives_what_the_command_gives(run_dir: Path, bundle: Bundle, tmp_path: Path) -> None:
    recommender = Recommender.load(run_dir)
    where, conditions = "title like '%blue%'", [{"column": "title", "op": "contains", "value": "blue"}]
    table = recommender.recommend(users=["u3", "nobody", "u3"], k=4, where=where, diversity=3)
    (tmp_path / "users.txt").write_text("u3\nnobody\n", encoding="utf-8")
    flags = [
        "--users",
        tmp_path / "users.txt",
        "--k",
        "4",
        "--where",
        where,
        "--diversity",
        "3",
        "--output",
        tmp_path / "l.parquet",
    ]
    assert exit_code(RECOMMEND, "--run_dir", run_dir, *flags) == 0
    assert_frame_equal(table, pl.read_parquet(tmp_path / "l.parquet", glob=False))
    assert_frame_equal(table, recommender.recommend(users=["u3", "nobody"], k=4, where=conditions, diversity=3))
    asked = Recommender.load(run_dir / "bundle").recommend(histories=[["i1", "i2"], []], k=3)
    same_rows(asked, answer(bundle, [np.array([1, 2]), np.zeros(0, np.int64)], Question(3), ["0", "1"]))
    assert recommender.recommend(histories=[]).schema == COLUMNS


def test_ids_sids_and_tokens_name_the_same_items(run_dir: Path) -> None:
    recommender = Recommender.load(run_dir / "bundle")
    bundle, ids = recommender.bundle, recommender.ids
    assert ids["item_id"].to_list() == bundle.items["item_id"].to_list()
    assert ids["sid"].to_list() == [bundle.sids.text(item) for item in range(N_ITEMS)]
    first = bundle.recommender.renderer.vocabulary.first_tokens
    assert ids["tokens"].to_list() == (bundle.sids.codes + np.array(first)).tolist()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "give users=\\[…\\] or histories"),
        ({"users": ["u1"], "histories": [["i1"]]}, "give users=\\[…\\] or histories"),
        ({"users": "u1"}, "users and histories are lists"),
        ({"histories": ["i1"]}, "history 0 is the text 'i1'"),
        ({"histories": [["i99"]]}, "'i99' is no item_id"),
        ({"users": ["u1"], "k": 0}, "k is 0"),
        ({"users": ["u1"], "where": "title"}, "not true or false"),
    ],
)
def test_a_mistaken_question_in_python(run_dir: Path, asked: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Recommender.load(run_dir).recommend(**asked)


def test_an_ensemble_is_filtered_and_diverse(run_dir: Path, tmp_path: Path) -> None:
    run, other = (shutil.copytree(run_dir, tmp_path / name) for name in ("run", "other"))
    models = ["--models", "sft_ensemble", "popularity", "--blend_with", "item_knn", "--other_runs", other]
    assert exit_code(EVALUATE, "--run_dir", run, *models, "--overwrite", "true") == 0
    recommender = Recommender.load(run, model="sft_ensemble")
    every = recommender.recommend(histories=[["i1", "i2"]], k=N_ITEMS)
    table = recommender.recommend(
        histories=[["i1", "i2"]], k=5, where="title like '%red%' or title like '%blue%'", diversity=3
    )
    passing = every.filter(pl.col("title").str.contains("red|blue"))
    wanted = passing.filter(pl.col("item_id").cum_count().over(pl.col("sid").str.head(5)) <= 3).head(5)
    assert table["item_id"].to_list() == wanted["item_id"].to_list()


def test_the_package_stays_light() -> None:
    words = "import sys, sidrec; assert not {'torch', 'polars', 'numpy'} & set(sys.modules); import sidrec.__main__"
    subprocess.run([sys.executable, "-c", words + "; assert 'torch' not in sys.modules"], check=True, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'Recommend'"):
        sidrec.Recommend  # noqa: B018

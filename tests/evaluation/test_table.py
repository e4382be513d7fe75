"""The metrics, comparison and rendering made from known ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sidrec.evaluation import statistics, table

RANKS = {
    ("sft", "valid"): [0, 0, 30, 50],
    ("sft", "test"): [0, 3, 12, 50],
    ("popularity", "valid"): [8, 9, 40, 70],
    ("popularity", "test"): [0, 70, 70, 70],
    ("markov", "valid"): [9, 20, 40, 70],
    ("markov", "test"): [0, 1, 2, 3],
}


@pytest.fixture
def ranks() -> pl.DataFrame:
    frames = []
    for (model, split), values in RANKS.items():
        for masked in (True, False):
            shifted = np.array(values) + (0 if masked else 1)
            frame = pl.DataFrame({"user_id": list("abcd"), "target": [4, 3, 2, 1], "rank": shifted})
            labels = {"model": pl.lit(model), "split": pl.lit(split), "masked": pl.lit(masked)}
            frames.append(frame.select("user_id", "target", "rank", repeat=0, **labels))
    return pl.concat(frames)


def comparison(ranks: pl.DataFrame) -> dict[str, Any]:
    return {
        "seed": 0,
        "items": 100,
        "models": ["sft", "popularity", "markov"],
        "cases": {"valid": 4, "test": 4},
        "best_baseline": "popularity",
        "paired_tests": table.compare(ranks, seed=0),
        "list_checks": {"sft": {"lists": 16, "invalid": 3, "repeats": 0, "short": 1, "seen": 2}},
        "oracle": None,
    }


def test_metrics_by_hand(ranks: pl.DataFrame) -> None:
    metrics = table.summarise(ranks, seed=0)
    masked, unmasked = metrics["sft"]["test"]["masked"], metrics["sft"]["test"]["unmasked"]
    assert [masked[f"recall@{k}"] for k in (1, 5, 10, 20, 50)] == [0.25, 0.5, 0.5, 0.75, 0.75]
    assert [unmasked[f"recall@{k}"] for k in (1, 5, 10, 20, 50)] == [0.0, 0.5, 0.5, 0.75, 0.75]
    assert masked["ndcg@10"] == pytest.approx((1 + 1 / np.log2(5)) / 4)
    low, high = masked["recall@10_interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert set(metrics) == {"sft", "popularity", "markov"}
    assert not [name for name in metrics["sft"]["valid"]["masked"] if "interval" in name]


def test_the_best_baseline_is_chosen_on_valid_though_another_wins_on_test(ranks: pl.DataFrame) -> None:
    assert table.best_baseline(ranks) == "popularity"
    assert table.best_baseline(ranks.filter(pl.col("model") == "sft")) is None


def test_comparison_is_on_test_against_every_baseline(ranks: pl.DataFrame) -> None:
    rows = table.compare(ranks, seed=0)
    assert [(row["model"], row["against"], row["seen"], row["metric"]) for row in rows] == [
        ("sft", other, seen, metric)
        for seen in ("masked", "unmasked")
        for metric in ("recall@10", "ndcg@10")
        for other in ("popularity", "markov")
    ]
    assert rows[0]["difference"] == pytest.approx(0.25)
    assert [row["p_holm"] for row in rows[:2]] == statistics.holm([row["p"] for row in rows[:2]])
    with_rl = pl.concat([ranks, ranks.filter(pl.col("model") == "sft").with_columns(model=pl.lit("rl"))])
    against = [(row["model"], row["against"], row["difference"]) for row in table.compare(with_rl, seed=0)]
    assert ("rl", "sft", 0.0) in against


def with_repeat(ranks: pl.DataFrame, model: str, added: int) -> pl.DataFrame:
    """The same with a second training of `model`, all of whose ranks are `added` larger."""
    rows = ranks.filter(pl.col("model") == model)
    return pl.concat([ranks, rows.with_columns(pl.col("rank") + added, pl.col("repeat") + 1)])


def test_a_model_with_several_seeds_is_its_mean_over_them(ranks: pl.DataFrame) -> None:
    twice = with_repeat(ranks, "sft", 8)  # [0, 3, 12, 50] and [8, 11, 20, 58]
    entry = table.summarise(twice, seed=0)["sft"]["test"]["masked"]
    assert entry["recall@10"] == pytest.approx((2 + 1) / 8)
    hits = np.array([1.0, 0.5, 0.0, 0.0])
    assert entry["recall@10_interval"] == list(statistics.bootstrap_interval(hits, seed=0))
    first = table.compare(twice, seed=0)[0]
    popular = np.array([1.0, 0.0, 0.0, 0.0])
    expected = statistics.paired_test(hits, popular, seed=0)
    assert (first["difference"], first["p"]) == (expected.difference, expected.p)
    assert table.ranks_of(twice, "sft", "test", True).tolist() == [0, 3, 12, 50], "the first one's"


def test_a_user_with_several_cases_is_one_draw(ranks: pl.DataFrame) -> None:
    one_user = ranks.with_columns(user_id=pl.lit("a"))
    low, high = table.summarise(one_user, seed=0)["sft"]["test"]["masked"]["recall@10_interval"]
    assert low == high == 0.5
    assert table.compare(one_user, seed=0)[0]["p"] == 1.0


def test_what_the_reader_must_know_of_the_training_is_said(ranks: pl.DataFrame) -> None:
    told = comparison(ranks) | {
        "repeats": {"sasrec": [0.1, 0.2]},
        "tuning": {"item_knn": {"grid": [{"decay": 1.0}, {"decay": 0.9}], "valid_recall@10": [0.1, 0.3], "chosen": 1}},
        "cut_short": {"esasrec": {"cut": 2, "trainings": 6, "minutes": 10.0}},
    }
    text = "\n".join(table.notes(told))
    assert "mean of 2 trainings" in text
    assert "0.1000, 0.2000 (standard deviation 0.0707)" in text
    assert "item_knn: best of 2 settings by valid Recall@10, seen items masked (0.1000 to 0.3000): decay 0.9." in text
    assert "esasrec: NOT FULLY TRAINED. The time limit of 10 minutes ended 2 of its 6 trainings" in text
    assert "Holm-corrected for the 2 pairs of rows" in text


def test_the_screen_says_how_p_is_corrected(ranks: pl.DataFrame) -> None:
    (line,) = table.screen_notes(comparison(ranks))
    assert line.startswith("sft − popularity (the best baseline on valid): Recall@10 +0.2500, p ")
    assert line.endswith("(Holm-corrected for 2 pairs of rows)")


def test_markdown_holds_every_model_and_every_caveat(ranks: pl.DataFrame) -> None:
    of_lists = {
        "coverage": 0.5,
        "gini": 0.25,
        "entropy": 1.0,
        "effective_items": 3.0,
        "novelty": 9.5,
        "diversity": None,
    }
    text = table.markdown(table.summarise(ranks, seed=0), comparison(ranks), {"sft": of_lists})
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[-3:] == [
        "| model | coverage | Gini | entropy, nats | novelty, bits | diversity |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| sft | 50.0% | 0.250 | 1.00 | 9.50 |  |",
    ]
    rows = rows[:-3]
    widths = {line.count("|") for line in rows}
    assert widths == {len(table.header()) + 1}
    assert len(rows) == 2 * (2 + 3)
    assert rows[2].startswith("| sft | 0.5000 | 0.2500 | 0.5000 | 0.5000 | 0.7500 | 0.7500 | ")
    assert "3 invalid entries, 0 repeats, 1 lists too short, 2 seen items" in text
    assert "sft − popularity, test recall@10, seen masked: +0.2500" in text
    assert "Best possible" not in text


def test_oracle_is_reported_where_it_is_known(ranks: pl.DataFrame) -> None:
    oracle = {"expected": {"10": 0.5}, "realised": {"10": 0.48}, "share_of_expected": {"sft": {"10": 0.9}}}
    text = "\n".join(table.notes(comparison(ranks) | {"oracle": {"test": oracle}, "models": ["sft"]}))
    assert "0.5000 expected, 0.4800 on these cases; share of the expected reached, seen items masked: sft 90%" in text


def test_the_lines_for_the_screen_show_the_same_numbers(ranks: pl.DataFrame) -> None:
    metrics = table.summarise(ranks, seed=0)
    title, head, *rows = table.screen_lines(metrics, ["markov", "sft"])
    assert title == "Test, seen items masked (95 % intervals)"
    assert head.split() == ["Recall@10", "NDCG@10"]
    assert [row.split()[0] for row in rows] == ["markov", "sft"]
    for row in rows:
        figures = metrics[row.split()[0]]["test"]["masked"]
        for name in ("recall@10", "ndcg@10"):
            low, high = figures[f"{name}_interval"]
            assert f"{figures[name]:.4f} ({low:.4f}–{high:.4f})" in row
    assert len({row.index("(") for row in rows}) == 1, "columns"
    notes = table.screen_notes(comparison(ranks) | {"cut_short": {"sft": {"cut": 1, "trainings": 1, "minutes": 2.0}}})
    assert notes[0].startswith("sft − popularity (the best baseline on valid): Recall@10 +0.2500, p = ")
    assert "NOT FULLY TRAINED" in notes[1]
    assert len(notes) == 2


def test_plot_is_a_png_and_the_same_each_time(ranks: pl.DataFrame, tmp_path: Path) -> None:
    table.plot_recall(ranks, tmp_path / "a.png")
    table.plot_recall(ranks, tmp_path / "b.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content == (tmp_path / "b.png").read_bytes()

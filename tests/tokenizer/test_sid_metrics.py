"""The figures of codes alone, against counting, textbook formulas and scikit-learn; and what holds for any codes."""

import math
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import homogeneity_completeness_v_measure, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from sidrec.tokenizer.report.categories import categories_of
from sidrec.tokenizer.report.sid_metrics import (
    category_agreement,
    collisions,
    entropies,
    entropy,
    gini,
    prefix_ids,
    prefix_tree,
    token_costs,
    usage,
)

SIZES = [3, 4, 2]
ROWS = st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)), min_size=1, max_size=40)
COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any)


def some_codes(n: int = 200, seed: int = 0) -> np.ndarray:
    """Uneven codes with collisions, int32 [n, 3]."""
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.binomial(size - 1, 0.3, n) for size in (6, 9, 5)]).astype(np.int32)


def test_usage_of_a_known_case() -> None:
    figures = usage(np.array([0, 0, 0, 1]), 4)
    assert (figures["codes"], figures["codes_used"], figures["dead_codes"], figures["largest_cluster"]) == (4, 2, 2, 3)
    h = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert figures["entropy"] == pytest.approx(h, abs=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(h), abs=1e-5)
    assert figures["usage"] == 0.5
    assert figures["mean_cluster"] == 1.0
    assert figures["largest_over_mean"] == 3.0
    assert figures["top_1_percent_share"] == 0.75
    assert figures["gini"] == pytest.approx((-3 * 0 - 1 * 0 + 1 * 1 + 3 * 3) / (4 * 4))


def test_top_one_percent_is_rounded_up_to_whole_codes() -> None:
    codes = np.repeat(np.arange(256), [100, 50, 30] + [1] * 253)
    assert usage(codes, 256)["top_1_percent_share"] == pytest.approx(180 / 433, abs=1e-6)


@given(COUNTS)
def test_gini_is_the_mean_difference_of_all_pairs(counts: list[int]) -> None:
    """By its definition: sum over pairs of |n_i - n_j| / (2 K sum n)."""
    n = np.array(counts)
    expected = np.abs(n[:, None] - n).sum() / (2 * len(n) * n.sum())
    assert gini(n) == pytest.approx(expected)
    assert -1e-12 <= gini(n) < 1


@given(COUNTS)
def test_perplexity_lies_between_one_and_the_codes_used(counts: list[int]) -> None:
    figures = usage(np.repeat(np.arange(len(counts)), counts), len(counts))
    assert 1 - 1e-6 <= figures["perplexity"] <= figures["codes_used"] + 1e-5
    assert figures["codes_used"] + figures["dead_codes"] == figures["codes"]


def test_even_use_has_no_gini_and_full_perplexity() -> None:
    figures = usage(np.tile(np.arange(8), 5), 8)
    assert (figures["gini"], figures["perplexity"], figures["largest_over_mean"]) == (0.0, 8.0, 1.0)


def test_collisions_of_a_known_case() -> None:
    codes = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 1], [2, 2]])
    figures = collisions(codes)
    assert figures == {
        "rate": 3 / 8,
        "share_of_items": 5 / 8,
        "largest_group": 3,
        "group_sizes": [[1, 3], [2, 1], [3, 1]],
    }


@given(ROWS)
def test_prefix_ids_are_equal_where_prefixes_are_and_in_their_order(rows: list[tuple[int, ...]]) -> None:
    codes = np.array(rows)
    ids = prefix_ids(codes)
    for depth in range(codes.shape[1]):
        ranked = sorted({row[: depth + 1] for row in rows})
        assert ids[:, depth].tolist() == [ranked.index(row[: depth + 1]) for row in rows]


def test_prefix_ids_do_not_overflow() -> None:
    codes = np.full((2, 8), 2**16 - 1)
    codes[1, 0] = 0
    assert prefix_ids(codes)[:, -1].tolist() == [1, 0]


def test_conditional_entropy_equals_counting() -> None:
    """H(c_l | prefix) = sum over prefixes of p(prefix) times the entropy of the codes below it."""
    codes = some_codes()
    for depth, told in enumerate(entropies(codes)["conditional"]):
        below = defaultdict(Counter)
        for row in codes.tolist():
            below[tuple(row[:depth])][row[depth]] += 1
        expected = 0.0
        for counts in below.values():
            n = counts.total()
            expected += n / len(codes) * -sum(c / n * math.log(c / n) for c in counts.values())
        assert told == pytest.approx(expected, abs=2e-6)


@given(ROWS)
def test_chain_rule_and_the_bound_ln_n(rows: list[tuple[int, ...]]) -> None:
    figures = entropies(np.array(rows))
    assert sum(figures["conditional"]) == pytest.approx(figures["total"], abs=1e-5)
    unique = len(set(rows)) == len(rows)
    assert figures["total"] <= figures["ln_items"] + 1e-6
    assert (abs(figures["total"] - math.log(len(rows))) < 2e-6) == unique
    assert all(told >= 0 for told in figures["conditional"])


def test_entropy_is_never_minus_zero() -> None:
    assert str(entropy(np.array([5, 0]))) == "0.0"


@given(ROWS)
def test_prefix_tree_equals_counting(rows: list[tuple[int, ...]]) -> None:
    for depth, of_depth in enumerate(prefix_tree(np.array(rows), SIZES), start=1):
        groups = Counter(row[:depth] for row in rows)
        children = Counter(prefix[:-1] for prefix in groups)
        assert of_depth["prefixes"] == len(groups)
        assert of_depth["share_of_paths"] == pytest.approx(len(groups) / math.prod(SIZES[:depth]))
        assert of_depth["fan_out_mean"] == pytest.approx(np.mean(list(children.values())), abs=1e-6)
        assert of_depth["fan_out_p95"] == pytest.approx(np.percentile(list(children.values()), 95), abs=1e-6)
        assert of_depth["fan_out_max"] == max(children.values())
        assert of_depth["single_items"] == pytest.approx(np.mean([n == 1 for n in groups.values()]), abs=1e-6)
        assert of_depth["largest_group"] == max(groups.values())


def test_token_costs() -> None:
    figures = token_costs(np.zeros((1024, 3), dtype=int), [256, 256, 16])
    assert figures == {"tokens_per_item": 3, "new_tokens": 528, "bits_per_item": 20.0, "bits_needed": 10.0}


def test_category_agreement_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 12, 400)
    kinds = np.where(rng.random(400) < 0.6, codes // 3, rng.integers(0, 4, 400))
    figures = category_agreement(codes, [f"kind {kind}" for kind in kinds], seed=0)
    assert figures is not None
    homogeneity, completeness, v_measure = homogeneity_completeness_v_measure(kinds, codes)
    assert figures["homogeneity"] == pytest.approx(homogeneity, abs=1e-6)
    assert figures["completeness"] == pytest.approx(completeness, abs=1e-6)
    assert figures["nmi"] == pytest.approx(v_measure, abs=1e-6)
    assert figures["nmi"] == pytest.approx(normalized_mutual_info_score(kinds, codes), abs=1e-6)
    assert figures["purity"] == pytest.approx(contingency_matrix(kinds, codes).max(axis=0).sum() / 400, abs=1e-6)
    assert figures["by_chance"]["purity"] < figures["purity"] - 0.2
    assert figures["by_chance"]["nmi"] < 0.1 < figures["nmi"]


def test_chance_agrees_as_much_as_categories_that_mean_nothing() -> None:
    rng = np.random.default_rng(2)
    figures = category_agreement(rng.integers(0, 20, 2_000), [str(kind) for kind in rng.integers(0, 5, 2_000)], seed=0)
    assert figures is not None
    assert figures["by_chance"]["purity"] == pytest.approx(figures["purity"], abs=0.02)
    assert figures["by_chance"]["purity"] > 0.2  # small groups are pure by accident


def test_items_without_a_category_are_left_out() -> None:
    codes = np.array([0, 0, 1, 1, 1])
    figures = category_agreement(codes, ["a", "a", "b", "b", ""], seed=0)
    assert figures is not None
    assert (figures["items"], figures["categories"], figures["purity"], figures["nmi"]) == (4, 2, 1.0, 1.0)
    assert category_agreement(codes, ["a", "a", "", "", ""], seed=0) is None
    assert category_agreement(codes, [""] * 5, seed=0) is None


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("xyz")), min_size=3, max_size=40))
def test_agreement_lies_in_its_bounds(pairs: list[tuple[int, str]]) -> None:
    figures = category_agreement(np.array([code for code, _ in pairs]), [kind for _, kind in pairs], seed=0)
    if figures is None:
        assert len({kind for _, kind in pairs}) < 2
        return
    for name in ("purity", "nmi", "homogeneity", "completeness"):
        assert -1e-9 <= figures[name] <= 1 + 1e-9
    most = max(Counter(kind for _, kind in pairs).values()) / len(pairs)
    assert figures["purity"] >= most - 1e-6


@pytest.mark.parametrize(
    ("column", "values", "chosen"),
    [
        ("genres", ["Comedy, Drama", "", None, "War"], ["Comedy", "", "", "War"]),
        ("genre", ["Comedy", "War", "War", "Comedy"], ["Comedy", "War", "War", "Comedy"]),
        ("categories", ["Beauty > Nails > Polish", "Beauty > Hair", "Beauty", None], ["Polish", "Hair", "Beauty", ""]),
        ("categories", ["OPI, Makeup, Nails", "Hair", "", "Makeup | Eyes"], ["Nails", "Hair", "", "Eyes"]),
        ("category", [["Tools", "Glue"], [], None, ["Tools"]], ["Glue", "", "", "Tools"]),
    ],
)
def test_category_of_an_item(column: str, values: list[object], chosen: list[str]) -> None:
    assert categories_of(pl.DataFrame({"title": ["t"] * 4, column: values})) == chosen


def test_a_catalogue_without_categories_has_none() -> None:
    assert categories_of(pl.DataFrame({"title": ["a", "b"]})) is None
    assert categories_of(pl.DataFrame({"genres": ["War", "War"]})) is None

"""The report's figures against brute force on small cases, and the page's bytes."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tokenizer.report import collisions, example_groups, measure, neighbour_preservation, render, usage
from tokenizer.residual_kmeans import encode, fit
from tokenizer.semantic_ids import SemanticIds
from tokenizer.unique_sids import make_unique


def quantized(n_items: int = 120, level_sizes: tuple[int, ...] = (8, 8, 8)) -> tuple[np.ndarray, SemanticIds]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 6))
    vectors = (centres[rng.integers(0, 10, n_items)] + 0.3 * rng.standard_normal((n_items, 6))).astype(np.float32)
    vectors[7] = vectors[3]
    codebooks = fit(vectors, list(level_sizes), seed=0)
    raw = encode(vectors, codebooks)
    return vectors, SemanticIds(make_unique(vectors, raw, codebooks), raw, codebooks)


def test_usage_of_a_known_case() -> None:
    assert usage(np.array([0, 0, 1, 1]), 4) == {
        "codes": 4,
        "codes_used": 2,
        "usage": 0.5,
        "perplexity": 2.0,
        "largest_cluster": 2,
    }
    assert usage(np.array([0, 0, 0, 1]), 2)["perplexity"] == pytest.approx(
        np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    )


def test_collisions_of_a_known_case() -> None:
    codes = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 1], [2, 2]])
    assert collisions(codes) == {"rate": 3 / 8, "share_of_items": 5 / 8, "largest_group": 3}


def test_neighbour_preservation_equals_brute_force() -> None:
    vectors, sids = quantized()
    rebuilt = sum(book[sids.codes[:, level]] for level, book in enumerate(sids.codebooks))

    def nearest(rows: np.ndarray, item: int) -> set[int]:
        distances = ((rows - rows[item]) ** 2).sum(1)
        distances[item] = np.inf
        return set(np.argsort(distances)[:10].tolist())

    overlap = [len(nearest(vectors, item) & nearest(rebuilt, item)) / 10 for item in range(120)]
    assert neighbour_preservation(vectors, rebuilt, seed=0) == pytest.approx(np.mean(overlap), abs=2e-3)
    assert neighbour_preservation(vectors, vectors, seed=0) == 1.0
    assert neighbour_preservation(vectors[:1], vectors[:1], seed=0) == 1.0


def test_measure_counts_what_the_assignment_changed() -> None:
    vectors, sids = quantized()
    figures = measure(vectors, sids, seed=0)
    assert figures["items"] == 120
    assert figures["items_changed"] == int((sids.codes != sids.codes_raw).any(axis=1).sum()) > 0
    assert figures["exact_duplicate_vectors"] == 1
    assert figures["distinct_prefixes"][-1] == 120
    assert figures["distinct_prefixes"][0] == len(np.unique(sids.codes[:, 0]))
    rebuilt = sum(book[sids.codes[:, level]] for level, book in enumerate(sids.codebooks))
    assert figures["mean_squared_error_unique"] == pytest.approx(((vectors - rebuilt) ** 2).sum(1).mean(), rel=1e-4)
    assert figures["cost_of_uniqueness"] > 0
    explained = [level["variance_explained"] for level in figures["levels"]]
    assert explained == sorted(explained)
    assert "seconds" not in str(figures)


def test_examples_share_their_first_code() -> None:
    _, sids = quantized()
    groups = example_groups(sids, seed=0)
    assert len(groups) == 4
    for group in groups:
        assert len(set(group)) == 3
        assert len(set(sids.codes[group, 0].tolist())) == 1
        ordered = [tuple(row) for row in sids.codes[group].tolist()]
        assert ordered == sorted(ordered)


def test_page_has_the_examples_and_valid_plots_and_escapes_titles() -> None:
    vectors, sids = quantized()
    titles = [f"Item {item} <b>&" for item in range(120)]
    figures = measure(vectors, sids, seed=0)
    page = render(figures, sids, titles, seed=0)
    for group in example_groups(sids, seed=0):
        for item in group:
            assert f"Item {item} &lt;b&gt;&amp;" in page
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 2
    for plot in plots:
        ElementTree.fromstring(plot)
    assert "http://" not in re.sub(
        r'xmlns(:\w+)?="[^"]*"', "", re.sub(r"<metadata>.*?</metadata>", "", page, flags=re.DOTALL)
    )
    assert render(figures, sids, titles, seed=0) == page


@pytest.mark.parametrize(("n_items", "level_sizes"), [(4, (4,)), (9, (2, 5)), (16, (2, 2, 2, 2))])
def test_small_catalogues_and_any_number_of_levels_have_a_report(n_items: int, level_sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n_items, 3)).astype(np.float32)
    books = fit(vectors, list(level_sizes), seed=0)
    raw = encode(vectors, books)
    sids = SemanticIds(make_unique(vectors, raw, books), raw, books)
    assert "<svg" in render(measure(vectors, sids, 0), sids, ["x"] * n_items, 0)

"""The report's figures of vectors against brute force on small cases, and the page's bytes."""

import re
from dataclasses import replace
from functools import cache
from xml.etree import ElementTree

import numpy as np
import pytest
from html_pages import outside

from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.embeddings.item_vectors import CHUNK
from sidrec.tokenizer.kmeans.residual_kmeans import fit
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.report import vector_metrics
from sidrec.tokenizer.report.figures import measure
from sidrec.tokenizer.report.lora import table_of_levels
from sidrec.tokenizer.report.page import example_groups, render
from sidrec.tokenizer.report.vector_metrics import (
    LARGEST_MARGIN,
    Reconstruction,
    exact_duplicates,
    highest_cosine,
    margins,
    nearest_items,
    neighbourhoods,
    variance,
    within_prefixes,
)
from sidrec.tokenizer.semantic_ids import SemanticIds
from sidrec.tokenizer.unique_sids import make_unique

HISTORY = {"rows": [{"step": step, "loss": 1 / (1 + step), "perplexity": [8.0 - step, 7.0]} for step in range(3)]}
LOW_RANK = {"levels": [{"usage": 0.875, "sources": [{"usage": 0.5, "lora_share": 0.0625}]}]}


@cache
def quantized(n_items: int = 120, level_sizes: tuple[int, ...] = (8, 8, 8)) -> tuple[np.ndarray, SemanticIds]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 6))
    vectors = (centres[rng.integers(0, 10, n_items)] + 0.3 * rng.standard_normal((n_items, 6))).astype(np.float32)
    vectors[7] = vectors[3]
    quantizer = Quantizer(fit(vectors, list(level_sizes), seed=0))
    raw = quantizer.encode(vectors)
    codes = make_unique(vectors, raw, quantizer.codebooks)
    return vectors, SemanticIds(codes, raw, quantizer.codebooks.books, quantizer)


def brute_nearest(rows: np.ndarray, item: int, k: int = 10) -> set[int]:
    distances = ((rows - rows[item]) ** 2).sum(1)
    distances[item] = np.inf
    return set(np.argsort(distances, kind="stable")[:k].tolist())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_variance_is_the_sum_over_dimensions() -> None:
    vectors = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    assert variance(vectors) == pytest.approx(vectors.astype(np.float64).var(axis=0).sum())
    assert variance(np.ones((3, 2), dtype=np.float32)) == 0.0


def test_neighbourhoods_equal_brute_force() -> None:
    vectors, sids = quantized()
    rebuilt = sum(book[sids.codes[:, level]] for level, book in enumerate(sids.codebooks))
    figures = neighbourhoods(vectors, rebuilt, sids.codes_raw, seed=0)
    assert figures["sampled"] == 120
    near = [brute_nearest(vectors, item) for item in range(120)]
    overlap = [len(near[item] & brute_nearest(rebuilt, item)) / 10 for item in range(120)]
    assert figures["preserved"] == pytest.approx(np.mean(overlap), abs=2e-3)
    for depth in range(1, 4):
        prefixes = [tuple(row[:depth]) for row in sids.codes_raw.tolist()]
        agree = [prefixes[item] == prefixes[other] for item in range(120) for other in near[item]]
        pairs = [prefixes[a] == prefixes[b] for a in range(120) for b in range(120) if a != b]
        assert figures["prefix_agreement"][depth - 1] == pytest.approx(np.mean(agree), abs=2e-3)
        assert figures["random_pairs"][depth - 1] == pytest.approx(np.mean(pairs), abs=1e-6)
    alike = [max(cosine(vectors[a], vectors[b]) for b in near[a]) > 0.999 for a in range(120)]
    assert figures["near_duplicates"] == pytest.approx(np.mean(alike), abs=1e-6)
    assert figures["near_duplicates"] >= 2 / 120  # items 3 and 7
    assert neighbourhoods(vectors, vectors, sids.codes, seed=0)["preserved"] == 1.0
    assert neighbourhoods(vectors[:1], vectors[:1], sids.codes[:1], seed=0)["preserved"] == 1.0


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 7 rows, so that a small case has many."""
    monkeypatch.setattr("sidrec.tokenizer.embeddings.item_vectors.CHUNK", 7)
    monkeypatch.setattr(vector_metrics, "CHUNK", 7)
    monkeypatch.setattr(vector_metrics, "BLOCK", 3)


@pytest.mark.usefixtures("small_pieces")
def test_nearest_items_across_pieces_equal_brute_force() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    items = np.array([0, 6, 7, 13, 39])
    who = nearest_items(vectors, items, 4)
    alike = highest_cosine(vectors, items, who)
    for row, item in enumerate(items):
        assert set(who[row].tolist()) == brute_nearest(vectors, item, 4)
        assert alike[row] == pytest.approx(max(cosine(vectors[item], vectors[other]) for other in who[row]), abs=1e-5)


@pytest.mark.usefixtures("small_pieces")
def test_groups_that_cross_pieces_equal_brute_force() -> None:
    check_within_prefixes()


def test_groups_in_one_piece_equal_brute_force() -> None:
    assert CHUNK > 120
    check_within_prefixes()


def check_within_prefixes() -> None:
    vectors, sids = quantized(60, (3, 5, 5))
    codes = sids.codes_raw
    figures = within_prefixes(vectors, codes)
    mean = vectors.mean(axis=0)
    for depth in range(1, 4):
        prefixes = [tuple(row[:depth]) for row in codes.tolist()]
        between, cosines = 0.0, []
        for prefix in set(prefixes):
            members = vectors[[one == prefix for one in prefixes]]
            between += len(members) * ((members.mean(axis=0) - mean) ** 2).sum()
            cosines += [cosine(members[a], members[b]) for a in range(len(members)) for b in range(a)]
        assert figures["variance_between"][depth - 1] == pytest.approx(
            between / ((vectors - mean) ** 2).sum(), abs=1e-5
        )
        assert figures["cosine"][depth - 1] == pytest.approx(np.mean(cosines), abs=1e-5)
    everything = [cosine(vectors[a], vectors[b]) for a in range(60) for b in range(a)]
    assert figures["cosine_of_random_pairs"] == pytest.approx(np.mean(everything), abs=1e-5)


def test_items_that_are_alone_explain_everything_and_have_no_pairs() -> None:
    vectors = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    vectors[0] = 0  # a row without a direction
    figures = within_prefixes(vectors, np.arange(6)[:, None])
    assert figures["variance_between"] == [1.0]
    assert figures["cosine"] == [None]


def test_margins_equal_brute_force() -> None:
    vectors, sids = quantized()
    assert sids.quantizer is not None
    measured = margins(vectors, sids.codes_raw, sids.quantizer, seed=0)
    residual = vectors.copy()
    for level, book in enumerate(sids.codebooks):
        distances = np.sort(np.sqrt(((residual[:, None].astype(np.float64) - book) ** 2).sum(-1)), axis=1)
        expected = np.minimum((distances[:, 1] - distances[:, 0]) / np.maximum(distances[:, 0], 1e-12), LARGEST_MARGIN)
        np.testing.assert_allclose(measured[:, level], expected, atol=1e-3)
        residual -= book[sids.codes_raw[:, level]]


def test_margins_where_codes_depend_on_the_code_before() -> None:
    first = np.array([[0.0, 0], [10, 0]], dtype=np.float32)
    second = np.array([[[0, 1], [0, -3]], [[0, 2], [0, 5]]], dtype=np.float32)  # [K_before, K, e]
    vectors = np.array([[0, 0.5], [10, 3]], dtype=np.float32)
    quantizer = Quantizer(Codebooks([first, second]))
    measured = margins(vectors, quantizer.encode(vectors), quantizer, seed=0)
    np.testing.assert_allclose(measured[:, 1], [(3.5 - 0.5) / 0.5, (2 - 1) / 1], atol=1e-5)


def test_an_item_on_its_code_and_equal_codes() -> None:
    vectors = np.array([[1.0, 0], [0, 1]], dtype=np.float32)
    twice = Quantizer(Codebooks([np.array([[1.0, 0], [1, 0], [0, 1]], dtype=np.float32)]))
    assert margins(vectors, twice.encode(vectors), twice, seed=0).tolist() == [[0.0], [LARGEST_MARGIN]]


def test_exact_duplicates_are_counted_by_content() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(-2, 3, (300, 3)).astype(np.float32)  # 125 different rows at most
    rows[5] = [-0.0, 1, 0]
    rows[6] = [0.0, 1, -0.0]  # equal to the one before, in other bits
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert exact_duplicates(rows) == {
        "extra": 300 - len(counts),
        "items": int(counts[counts > 1].sum()),
        "largest_group": int(counts.max()),
    }


def test_measure_counts_what_the_assignment_changed() -> None:
    vectors, sids = quantized()
    figures = measure(vectors, sids, seed=0)
    assert figures["items"] == 120
    assert figures["items_changed"] == int((sids.codes != sids.codes_raw).any(axis=1).sum()) > 0
    assert figures["duplicate_vectors"] == {"extra": 1, "items": 2, "largest_group": 2}
    assert [depth["prefixes"] for depth in figures["prefix_tree"]][::2] == [len(np.unique(sids.codes[:, 0])), 120]
    rebuilt = sum(book[sids.codes[:, level]] for level, book in enumerate(sids.codebooks))
    assert figures["mean_squared_error_unique"] == pytest.approx(((vectors - rebuilt) ** 2).sum(1).mean(), rel=1e-4)
    assert figures["cost_of_uniqueness"] > 0
    assert figures["collisions"]["share_of_items"] == 0 < figures["collisions_raw"]["share_of_items"]
    assert figures["entropy"]["total"] == pytest.approx(np.log(120), abs=1e-6)
    assert figures["entropy_raw"]["total"] < np.log(120)
    assert figures["reconstruction"] == "quantizer"
    explained = [level["variance_explained"] for level in figures["levels"]]
    assert explained == sorted(explained)
    raw_rebuilt = sum(book[sids.codes_raw[:, level]] for level, book in enumerate(sids.codebooks))
    left = ((vectors - raw_rebuilt) ** 2).sum() / ((vectors - vectors.mean(0)) ** 2).sum()
    assert explained[-1] == pytest.approx(1 - left, abs=1e-4)
    for shares in figures["margins"]["shares"]:
        assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert figures["categories"] is None
    assert "seconds" not in str(figures)


def test_sids_without_a_quantizer_are_measured_by_the_means_of_their_items() -> None:
    vectors, sids = quantized()
    imported = SemanticIds(sids.codes, sids.codes, [np.zeros((8, 0), dtype=np.float32)] * 3)
    figures = measure(vectors, imported, seed=0)
    assert figures["reconstruction"] == "fitted to the codes"
    residual = vectors.astype(np.float64)
    for level in range(3):
        for code in np.unique(sids.codes[:, level]):
            members = sids.codes[:, level] == code
            residual[members] -= residual[members].mean(axis=0)
        assert figures["levels"][level]["mean_squared_error"] == pytest.approx((residual**2).sum(1).mean(), rel=1e-4)
    assert figures["levels"][0]["variance_explained"] == pytest.approx(
        figures["within_prefixes"]["variance_between"][0], abs=1e-5
    )


def test_a_level_that_only_tells_items_apart_explains_nothing() -> None:
    """The extra token of other systems: no vector belongs to it."""
    vectors, sids = quantized()
    assert sids.quantizer is not None
    extra = np.zeros((120, 1), dtype=np.int32)
    seen: dict[tuple[int, ...], int] = {}
    for item, row in enumerate(map(tuple, sids.codes_raw.tolist())):
        extra[item] = seen[row] = seen.get(row, -1) + 1
    codes = np.concatenate([sids.codes_raw, extra], axis=1)
    raw = np.concatenate([sids.codes_raw, np.zeros_like(extra)], axis=1)
    books = [*sids.codebooks, np.zeros((int(extra.max()) + 1, 6), dtype=np.float32)]
    longer = SemanticIds(codes, raw, books, sids.quantizer)
    figures, before = measure(vectors, longer, seed=0), measure(vectors, sids, seed=0)
    assert figures["collisions"]["rate"] == 0
    assert figures["collisions_raw"] == before["collisions_raw"]
    assert figures["levels"][3]["variance_explained"] == before["levels"][2]["variance_explained"]
    assert "margin" not in figures["levels"][3]
    assert figures["levels"][3]["codes_used"] == int(extra.max()) + 1
    assert figures["items_changed"] == 0
    assert "<svg" in render(figures, longer, ["x"] * 120, 0, vectors)


def test_reconstruction_is_made_of_any_rows() -> None:
    _, sids = quantized()
    assert sids.quantizer is not None
    rows = Reconstruction(sids.quantizer, sids.codes, 6)
    whole = sids.quantizer.reconstruct(sids.codes)
    np.testing.assert_array_equal(rows[np.array([5, 2])], whole[[5, 2]])
    np.testing.assert_array_equal(rows[10:20], whole[10:20])
    assert (len(rows), rows.shape) == (120, (120, 6))


def test_examples_share_their_first_code() -> None:
    _, sids = quantized()
    groups = example_groups(sids, seed=0)
    assert len(groups) == 4
    for group in groups:
        assert len(set(group)) == 3
        assert len(set(sids.codes[group, 0].tolist())) == 1
        ordered = [tuple(row) for row in sids.codes[group].tolist()]
        assert ordered == sorted(ordered)


def full_page(titles: list[str]) -> tuple[str, SemanticIds]:
    vectors, sids = quantized()
    categories = ["war" if item % 2 else "peace & quiet" for item in range(120)]
    figures = measure(vectors, sids, 0, categories)
    return render(figures, sids, titles, 0, vectors, categories, HISTORY, [table_of_levels(LOW_RANK)]), sids


def test_page_has_the_examples_and_valid_plots_and_escapes_titles(recwarn: pytest.WarningsRecorder) -> None:
    titles = [f"Item {item} <i>& $x_" for item in range(120)]
    for item in range(0, 120, 2):
        titles[item] += " 日本 🎬 \x0b\ud83d $^{"  # signs that a font, XML or a formula cannot hold
    page, sids = full_page(titles)
    for group in example_groups(sids, seed=0):
        for item in group:
            assert f"Item {item} &lt;i&gt;&amp; $x_" in page
    assert "<i>" not in page
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 10
    for plot in plots:
        ElementTree.fromstring(plot)
    assert not [warning for warning in recwarn if "lyph" in str(warning.message)]
    assert "peace &amp; quiet" in page
    assert "0.0625" in page
    assert outside(page) == []
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower()
    assert full_page(titles)[0] == page  # the same bytes


def test_the_check_for_outside_assets_finds_them() -> None:
    assert outside('<img src="https://x.org/a.png"><script>1</script><p style="background:url(b.png)">')


@pytest.mark.parametrize(("n_items", "level_sizes"), [(4, (4,)), (16, (2, 2, 2, 2))])
def test_small_catalogues_and_any_number_of_levels_have_a_report(n_items: int, level_sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n_items, 3)).astype(np.float32)
    quantizer = Quantizer(fit(vectors, list(level_sizes), seed=0))
    raw = quantizer.encode(vectors)
    sids = SemanticIds(make_unique(vectors, raw, quantizer.codebooks), raw, quantizer.codebooks.books, quantizer)
    page = render(measure(vectors, sids, 0), sids, ["x"] * n_items, 0, vectors)
    assert len(re.findall(r"<svg", page)) == (9 if len(level_sizes) > 1 else 8)


def test_one_item_and_constant_vectors_have_figures() -> None:
    for n_items in (1, 3):
        vectors = np.ones((n_items, 2), dtype=np.float32)
        codes = np.arange(n_items, dtype=np.int32)[:, None]
        quantizer = Quantizer(Codebooks([np.ones((3, 2), dtype=np.float32)]))
        sids = SemanticIds(codes, codes, quantizer.codebooks.books, quantizer)
        figures = measure(vectors, sids, 0)
        assert figures["levels"][0]["variance_explained"] == 0.0
        assert figures["neighbours"]["preserved"] == 1.0
    assert "<svg" in render(figures, sids, ["x"] * n_items, 0, vectors)


def test_the_seed_draws_the_sample() -> None:
    vectors, sids = quantized()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vector_metrics, "SAMPLED_QUERIES", 10)
        first, again, other = (measure(vectors, sids, seed)["neighbours"] for seed in (0, 0, 1))
    assert first == again != other
    assert first["sampled"] == 10
    assert measure(vectors, replace(sids), 0)["neighbours"]["sampled"] == 120

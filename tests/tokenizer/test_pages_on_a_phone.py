"""The pages on semantic IDs, opened in a browser: nothing is off a phone's screen, and every legend is whole."""

from pathlib import Path

import numpy as np
from html_pages import assert_readable_on_a_phone

from sidrec.tokenizer.kmeans.residual_kmeans import fit
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.report import comparison
from sidrec.tokenizer.report.comparison import SidSet, measure_set
from sidrec.tokenizer.report.figures import measure
from sidrec.tokenizer.report.page import render
from sidrec.tokenizer.semantic_ids import SemanticIds
from sidrec.tokenizer.unique_sids import make_unique

N_ITEMS = 120


def semantic_ids(vectors: np.ndarray, level_sizes: list[int]) -> SemanticIds:
    quantizer = Quantizer(fit(vectors, level_sizes, seed=0))
    raw = quantizer.encode(vectors)
    return SemanticIds(make_unique(vectors, raw, quantizer.codebooks), raw, quantizer.codebooks.books, quantizer)


def test_the_report_of_long_titles(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((N_ITEMS, 6)).astype(np.float32)
    sids = semantic_ids(vectors, [8, 8, 8])
    titles = [f"Item {item} of a catalogue with titles that are longer than a phone is wide" for item in range(N_ITEMS)]
    titles[0] = "oneword" * 30
    categories = ["war" if item % 2 else "peace & quiet" for item in range(N_ITEMS)]
    training = {"rows": [{"step": step, "loss": 1 / (1 + step)} for step in range(3)]}
    page = render(measure(vectors, sids, 0, categories), sids, titles, 0, vectors, categories, training)
    assert_readable_on_a_phone(page, tmp_path)


def test_sets_side_by_side_and_those_that_coincide(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((N_ITEMS, 6)).astype(np.float32)
    first, second = semantic_ids(vectors, [8, 8, 8]), semantic_ids(vectors, [16, 16])
    names = {"a set with a long name of its own": first, "the same set": first, "another one": second}
    sets = [SidSet.of(name, sids) for name, sids in names.items()]
    page = comparison.render({one.name: measure_set(vectors, one, 0, None) for one in sets}, sets)
    assert page.count("a set with a long name of its own = the same set") >= 4, "in the legend of every plot"
    assert_readable_on_a_phone(page, tmp_path)

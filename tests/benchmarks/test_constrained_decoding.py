"""The benchmark's own parts, small: its peers allow the same codes, its catalogues are what they say, its threads find nothing wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import changing_catalogue, masking_step
from benchmarks.constrained_decoding import ConstrainedDecodingConfig
from benchmarks.random_catalogues import skewed_codes, small_qwen3, uniform_codes
from sidrec.decoding.catalogue import LiveCatalogue
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError


@pytest.mark.parametrize("make", [uniform_codes, skewed_codes])
def test_random_catalogues_hold_distinct_rows_within_the_levels(make):
    codes = make(5000, [30, 40, 50], 3)
    assert codes.shape == (5000, 3)
    assert len(codes.unique(dim=0)) == 5000
    assert (codes.max(0).values < torch.tensor([30, 40, 50])).all()
    assert torch.equal(codes, make(5000, [30, 40, 50], 3))


def test_skewed_catalogues_are_skewed():
    uniform, skewed = (SidTrie(make(20_000, [64] * 4, 0), [64] * 4) for make in (uniform_codes, skewed_codes))
    assert skewed.widest(3) > 3 * uniform.widest(3)


def test_masking_figures_come_from_steps_that_agree(monkeypatch):
    monkeypatch.setattr(masking_step, "VOCABULARY", 100)
    figures = masking_step.compare_masking(20_000, repeats=1, seed=0)
    assert figures["dict_ratio"] > 0
    assert figures["most_children"] >= figures["mean_children"] >= 1
    monkeypatch.setattr(masking_step.PaddedCsr, "__call__", lambda *_: (torch.zeros(640, 4), None))
    with pytest.raises(AssertionError, match="padded rows allow other codes"):
        masking_step.compare_masking(20_000, repeats=1, seed=0)


def test_large_trie_figures():
    figures = masking_step.measure_large_trie(20_000, repeats=1, seed=0)
    assert 0 < figures["open_ms"] < 1000
    assert figures["file_bytes_per_item"] > 8


def test_threads_of_requests_report_a_removed_item(monkeypatch):
    """With a catalogue that does as told there is nothing to report; with one that forgets removals there is."""
    monkeypatch.setattr(changing_catalogue, "VOCABULARY", 100)
    monkeypatch.setattr(changing_catalogue, "SIZES", [16] * 3)
    monkeypatch.setattr(changing_catalogue, "SIDS", changing_catalogue.SidVocabulary(0, (100, 116, 132), (16,) * 3))
    model = small_qwen3(148, 0)
    codes = uniform_codes(1200, [16] * 3, 0)
    figures = changing_catalogue.requests_under_change(model, live(codes), codes[1000:].numpy(), seconds=1.5)
    assert figures["requests"] > 0
    assert figures["removed"] > 0
    monkeypatch.setattr(LiveCatalogue, "remove", lambda self, items: None)
    with pytest.raises(AssertionError, match="a removed item"):
        changing_catalogue.requests_under_change(model, live(codes), codes[1000:].numpy(), seconds=10)


def live(codes: torch.Tensor) -> LiveCatalogue:
    return LiveCatalogue(SidTrie(codes[:1000], [16] * 3))


def test_seen_items_and_insertions_are_timed(monkeypatch):
    monkeypatch.setattr(changing_catalogue, "VOCABULARY", 100)
    monkeypatch.setattr(changing_catalogue, "SIZES", [16] * 3)
    monkeypatch.setattr(changing_catalogue, "SIDS", changing_catalogue.SidVocabulary(0, (100, 116, 132), (16,) * 3))
    codes = uniform_codes(1200, [16] * 3, 0)
    trie = SidTrie(codes[:1000], [16] * 3)
    assert np.isfinite(changing_catalogue.seen_share(small_qwen3(148, 0), trie, repeats=1, seed=0))
    assert changing_catalogue.insert_seconds(trie, codes[1000:].numpy(), repeats=1) > 0


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match="there are the parts a, b, c and d"):
        ConstrainedDecodingConfig(parts=["e"])
    with pytest.raises(InputError, match="10,000 or more"):
        ConstrainedDecodingConfig(items=10)

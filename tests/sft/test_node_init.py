"""Rows of an RQ-Transformer's nodes at the start: what they sum to, which levels have own ones, and what an untrained model can do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import make_sids
from run_dirs import make_run_dir

from sidrec.baselines.popularity import fit_popularity
from sidrec.baselines.scorer import valid_recall
from sidrec.data.dataset import Dataset
from sidrec.data.metrics import ranks_in_lists, recall_at
from sidrec.decoding.recommender import Recommender
from sidrec.decoding.renderer import Renderer
from sidrec.decoding.trie import SidTrie
from sidrec.sft.fine_tuning import start_model
from sidrec.sft.node_init import levels_with_own_rows, residual_rows, with_unused_rows
from sidrec.sft.settings import BackboneConfig, SftConfig
from sidrec.tokenizer.semantic_ids import SemanticIds


def trie_of(codes: np.ndarray) -> SidTrie:
    return SidTrie(torch.from_numpy(codes), (codes.max(0) + 1).tolist())


def test_rows_are_the_residual_centroids_of_each_level() -> None:
    codes = make_sids(60, [4, 5, 6], seed=1).codes
    vectors, trie = torch.randn(60, 12), trie_of(codes)
    rest = vectors.clone()
    for level, (shared, own_rows) in enumerate(residual_rows(vectors, trie, std=0.02)):
        node = trie.node_of_item[level + 1][:]
        centroids = torch.stack([rest[node == n].mean(0) for n in range(trie.n_nodes[level + 1])])
        rest = rest - centroids[node]
        rows = shared[trie.code[level][:]] + own_rows
        assert torch.allclose(rows, centroids * 0.02 / centroids.std(), atol=1e-6)
        for code in range(len(shared)):
            of_code = codes[:, level] == code
            assert torch.allclose(shared[code], rows[node[of_code]].mean(0), atol=1e-6)


def test_a_level_of_forced_codes_starts_from_zero() -> None:
    codes = np.array([[0, 0], [1, 0], [2, 1]], dtype=np.int32)
    (_, _), (shared, own_rows) = residual_rows(torch.randn(3, 4), trie_of(codes), std=0.02)
    assert float(shared.abs().max()) == float(own_rows.abs().max()) == 0


def test_codes_without_items_start_where_their_code_vectors_lie() -> None:
    """Where rows are an affine map of the code vectors, unused codes get its rows, at the used ones' norm; used rows stay as they are."""
    codebook = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    rows = codebook @ torch.randn(6, 16, generator=torch.Generator().manual_seed(1)) + 0.3
    used, unused = torch.arange(0, 15), torch.arange(15, 20)
    shared = rows.index_fill(0, unused, 0.0)
    filled = with_unused_rows(shared, used, codebook.numpy())
    assert torch.equal(filled[used], shared[used])
    norm = rows[used].norm(dim=1).mean()
    expected = rows[unused] * norm / rows[unused].norm(dim=1, keepdim=True)
    assert torch.allclose(filled[unused], expected, atol=1e-4)
    assert torch.equal(with_unused_rows(rows, torch.arange(20), codebook.numpy()), rows)
    alike = with_unused_rows(shared, used, np.zeros((20, 6), np.float32))
    assert torch.equal(alike[used], shared[used])
    assert torch.allclose(alike[unused], rows[used].mean(dim=0).expand(5, -1))


def test_a_models_rows_of_unused_codes_are_not_zero(tmp_path: Path) -> None:
    """And those of used ones are as if there were no others: the residual centroids."""
    run_dir = make_run_dir(tmp_path / "run")
    dataset, sids = Dataset.load(run_dir), SemanticIds.load(run_dir)
    books = [np.concatenate([book, 2 * book[:2] - 1]) for book in sids.codebooks]
    config, backbone = SftConfig(run_dir=run_dir), BackboneConfig(architecture="rq_transformer")
    starts = [SemanticIds(sids.codes, sids.codes, codebooks) for codebooks in (sids.codebooks, books)]
    (plain, _, few), (model, _, many) = (start_model(dataset, ids, config, backbone, seed=0) for ids in starts)
    for level, size in enumerate(sids.level_sizes):
        used = np.unique(sids.codes[:, level])
        rows, expected = (
            start.embed_tokens.weight.detach()[vocabulary.first_tokens[level] :]
            for start, vocabulary in ((model, many), (plain, few))
        )
        assert torch.equal(rows[used], expected[used])
        norms, usual = rows[size : size + 2].norm(dim=1), rows[used].norm(dim=1).mean()
        assert torch.allclose(norms, usual.expand(2), rtol=1e-4)


def test_own_rows_are_where_nodes_share_codes_and_memory_lasts(monkeypatch) -> None:
    shared = trie_of(make_sids(60, [4, 5, 6], seed=1).codes)
    assert levels_with_own_rows(shared, 8) == [1, 2]
    own_token = np.stack([np.arange(60) % 4, np.arange(60)], 1).astype(np.int32)
    assert levels_with_own_rows(trie_of(own_token), 8) == []
    monkeypatch.setattr("sidrec.sft.node_init.OWN_ROWS_BYTES", 4 * 8 * (shared.n_nodes[1] + shared.n_nodes[2]))
    assert levels_with_own_rows(shared, 8) == [1]


def test_codes_rows_alone(tmp_path: Path) -> None:
    run_dir = make_run_dir(tmp_path / "run")
    dataset, sids = Dataset.load(run_dir), SemanticIds.load(run_dir)
    for own_rows in (True, False):
        backbone = BackboneConfig(architecture="rq_transformer", own_rows=own_rows)
        model, _, _ = start_model(dataset, sids, SftConfig(run_dir=run_dir), backbone, seed=0)
        assert bool(model.config.own_levels) == bool(len(model.nodes.own)) == own_rows


def test_an_untrained_model_ranks_above_popularity(tmp_path: Path) -> None:
    """By rows that start from co-occurrence, the smoothing branch, and scores that are products with the same rows."""
    run_dir = make_run_dir(tmp_path / "run")
    dataset, sids = Dataset.load(run_dir), SemanticIds.load(run_dir)
    config, backbone = SftConfig(run_dir=run_dir), BackboneConfig(architecture="rq_transformer")
    model, _, vocabulary = start_model(dataset, sids, config, backbone, seed=0)
    cases = dataset.cases("valid")
    recommender = Recommender.build(model.eval(), Renderer.build(sids, vocabulary, max_items=50), sids)
    untrained = ranks_in_lists(recommender.recommend(cases.histories, 10, exclude_seen=True).items, cases.targets)
    popularity = valid_recall(fit_popularity(dataset.train_sequences, dataset.n_items), cases)
    assert recall_at(untrained, 10).mean() > popularity + 0.1

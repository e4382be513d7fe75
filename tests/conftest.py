"""Small models, SIDs and data that many tests share."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from databases import empty_schema, postgres_server

from sidrec.sft.backbone import load_backbone
from sidrec.sft.settings import BackboneConfig
from sidrec.tokenizer.semantic_ids import SemanticIds

SCHEMAS = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests begin first, so that no process waits for them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def as_many_threads_after_a_test_as_before():
    """Benchmarks set their number of threads; with another one, later tests of the same process get other last bits."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def make_sids(n_items: int, level_sizes: list[int], seed: int = 0, dim: int = 6) -> SemanticIds:
    """Random unique SIDs with random codebooks."""
    rng = np.random.default_rng(seed)
    paths = np.array(list(itertools.product(*(range(size) for size in level_sizes))))
    codes = paths[rng.permutation(len(paths))[:n_items]].astype(np.int32)
    return SemanticIds(codes, codes, [rng.normal(size=(size, dim)).astype(np.float32) for size in level_sizes])


@pytest.fixture(scope="session")
def tiny_backbone() -> BackboneConfig:
    return BackboneConfig(
        architecture="qwen3",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        dropout=0.0,
    )


@pytest.fixture
def tiny_model(tiny_backbone: BackboneConfig):
    """(model, tokenizer) with no SID tokens yet, weights spread out so that its choices differ."""
    model, tokenizer = load_backbone(tiny_backbone, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model.eval(), tokenizer


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store can be made: each kind of database, empty."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return empty_schema(request.getfixturevalue("postgres"), f"s{next(SCHEMAS)}")

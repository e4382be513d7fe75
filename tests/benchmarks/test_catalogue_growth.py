"""The benchmark of growing catalogues on small ones: what it measures is there, and an exponent is the slope it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import catalogue_growth
from benchmarks.catalogue_growth import CatalogueGrowthConfig, exponent, training_step
from benchmarks.random_catalogues import random_model, random_sids
from sidrec.pipeline.errors import InputError


def test_an_exponent_is_the_slope_of_the_logarithms() -> None:
    sizes = [10, 100, 1000]
    assert exponent(sizes, [3 * size**0.5 for size in sizes]) == pytest.approx(0.5)
    assert exponent(sizes, [7.0] * 3) == 0


@pytest.mark.parametrize("head", ["marginal", "additive"])
def test_a_step_trains_the_model(head: str) -> None:
    sids = random_sids(300, seed=0)
    model, vocabulary = random_model(sids, head, seed=0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    training_step(model, vocabulary, sids, np.random.default_rng(0))()
    moved = [name for name, value in model.named_parameters() if not torch.equal(before[name], value)]
    assert len(moved) == len(before)


def test_it_prints_a_row_a_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue_growth.main(["--items", "200", "400", "--users", "3", "--repeats", "1"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["items"] for row in figures["rows"]] == [200, 400]
    assert set(figures["exponents"]) == set(catalogue_growth.MEASURED)
    assert all(row["step_seconds"] > 0 and row["users_a_second"] > 0 for row in figures["rows"])


def test_one_catalogue_has_no_growth() -> None:
    with pytest.raises(InputError, match="--items must name two or more"):
        CatalogueGrowthConfig(items=[1000])

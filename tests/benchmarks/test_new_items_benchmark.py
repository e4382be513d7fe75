"""The benchmark of new items on a small catalogue."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from benchmarks.new_items import NewItemsConfig, main, write_shop


def test_the_shop_holds_the_new_items_back(tmp_path: Path) -> None:
    write_shop(tmp_path, NewItemsConfig(items=700, new=100))
    items, new, log = (pl.read_csv(tmp_path / f"{name}.csv") for name in ("items", "new", "log"))
    assert (len(items), len(new)) == (700, 100)
    assert pl.concat([items, new])["item_id"].n_unique() == 800
    assert set(log["item_id"]) <= set(items["item_id"])


@pytest.mark.slow
def test_every_new_item_is_reachable(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--items", "300", "--new", "30", "--users", "3"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["items"], figures["new"]) == (300, 30)
    assert figures["reachable"] == figures["recommended"] == 1.0
    assert figures["seconds"] > 0

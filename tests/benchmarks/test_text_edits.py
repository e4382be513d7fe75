"""The benchmark of text edits: the edits by hand, its shares by brute force, a control that chance explains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_dirs import N_ITEMS, make_run_dir, small_dataset

from benchmarks.text_edits import EDITS, SYNONYMS, TextEditsConfig, main, measure
from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors
from sidrec.tokenizer.embeddings.text import TfidfSvd
from sidrec.tokenizer.quantizers.rqkmeans import Rqkmeans

TEXT = "The Big Movie (1995). A war, and the rock-set!"


def test_the_edits_by_hand() -> None:
    assert {name: edit(TEXT) for name, edit in EDITS.items()} == {
        "upper case": "THE BIG MOVIE (1995). A WAR, AND THE ROCK-SET!",
        "no punctuation": "The Big Movie 1995 A war and the rock set",
        "halves swapped": "A war, and the rock-set! The Big Movie (1995).",
        "words reversed": "rock-set! the and war, A (1995). Movie Big The",
        "no stop words": "Big Movie (1995). war, rock-set!",
        "synonyms": "The large film (1995). A battle, and the stone-set!",
    }
    assert all(edit("") == "" for edit in EDITS.values())
    assert all(SYNONYMS[other] == word for word, other in SYNONYMS.items()), "a pair is not one of its own"


def test_the_shares_are_of_the_items_that_were_changed() -> None:
    texts = small_dataset().items["text"].to_list()
    edited = [text.replace("red", "blue") for text in texts]
    encode = TfidfSvd.fit(texts, 8, 0)[0].encode
    vectors = ItemVectors([encode(texts)], [1.0])
    quantizer = Rqkmeans().fit(vectors, [6, 4], 0)
    row = measure(texts, edited, vectors, quantizer.encode(vectors), encode, quantizer.encode)
    changed = [item for item, text in enumerate(texts) if " red " in text]
    before, after = encode(texts), encode(edited)
    codes, others = quantizer.encode(before), quantizer.encode(after)
    assert row["changed"] == len(changed) == 10
    assert row["first_code"] == pytest.approx(np.mean([codes[item][0] == others[item][0] for item in changed]))
    assert row["all_codes"] == pytest.approx(np.mean([all(codes[item] == others[item]) for item in changed]))
    assert row["cosine"] == pytest.approx(np.mean([before[item] @ after[item] for item in changed]), rel=1e-5)
    assert row["all_codes"] < 1
    same = measure(texts, texts, vectors, quantizer.encode(vectors), encode, quantizer.encode)
    assert same == {"changed": 0, "cosine": None, "first_code": None, "all_codes": None}


def test_tfidf_does_not_see_case_or_punctuation_and_another_text_is_another_item(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run_dir(tmp_path / "run")
    main(["--run_dir", str(run_dir), "--level_sizes", "6", "6", "--text_dim", "16"])
    printed = capfd.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    rows: dict[str, Any] = {row["edit"]: row for row in figures["rows"]}
    assert figures["items"] == rows["upper case"]["changed"] == N_ITEMS
    for name in ("upper case", "no punctuation"):
        assert rows[name]["all_codes"] == 1
        assert rows[name]["cosine"] == pytest.approx(1, abs=1e-5)
    assert rows["the next item's text"]["all_codes"] < 0.5
    assert "| upper case | 60 | 1.000 | 100.0% | 100.0% |" in printed


@pytest.mark.parametrize(
    ("changed", "message"), [({"quantizer": "nosuch"}, "nosuch"), ({"text_dim": 0}, "--text_dim is 0")]
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextEditsConfig(**changed)

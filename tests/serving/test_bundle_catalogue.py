"""New, changed and removed items of a bundle: recommended at once, by versions that are whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from run_dirs import ROOT, RQ_FLAGS, assert_one_sentence, exit_code, run_stage
from shop_runs import SMALL, call, shop_run

import sidrec
from sidrec.data.dataset import Dataset
from sidrec.decoding.recommender import Recommender
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256
from sidrec.serving import add_items, catalogue, make_bundle, remove_items, update, versions
from sidrec.serving.bundle import Bundle
from sidrec.sft import train
from sidrec.tokenizer import embed, quantize
from sidrec.tokenizer.semantic_ids import SemanticIds

UNTAKEN = ["i60", "i61"]
NEW = "item_id,title,year\nn1,The red kettle,1999\nn2,The blue sled,2001\nn3,,\n"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_run(tmp_path_factory.mktemp("shop"), "assign", **RQ_FLAGS)


@pytest.fixture
def bundle(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, far from the run, and beside it new.csv."""
    shutil.copytree(run_dir / "bundle", tmp_path / "bundle")
    (tmp_path / "new.csv").write_text(NEW)
    return tmp_path / "bundle"


def ids_of(bundle: Bundle, indices: np.ndarray) -> list[str]:
    return [bundle.items["item_id"][int(item)] for item in indices if item >= 0]


def probabilities(bundle: Bundle, histories: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Of every item in the catalogue, its probability for each history by scoring all."""
    scores = bundle.recommender.leaf_log_probs(histories).exp().cpu().numpy()
    items = bundle.recommender.trie.item_of_leaf[:].tolist()
    return {bundle.items["item_id"][item]: scores[:, leaf] for leaf, item in enumerate(items)}


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_items_that_nobody_has_taken_have_semantic_ids_and_can_be_recommended(run_dir: Path) -> None:
    dataset, sids = Dataset.load(run_dir), SemanticIds.load(run_dir)
    assert dataset.items["item_id"].to_list()[-2:] == UNTAKEN
    assert not np.isin(dataset.interactions["item_index"].to_numpy(), [60, 61]).any()
    assert sids.n_items == sids.n_distinct == 62
    recommender = Recommender.load(run_dir, "sft")
    lists = recommender.recommend(dataset.cases("test").histories[:2], 62, exclude_seen=False)
    assert np.isfinite(lists.log_probs).all()
    assert {60, 61} <= set(lists.items[0].tolist())


def test_new_items_are_reachable_with_a_language_model_and_own_tokens_too(tmp_path: Path) -> None:
    run = shop_run(tmp_path, "own_token")
    (tmp_path / "new.csv").write_text(NEW)
    call(add_items.main, tmp_path / "new.csv", "--bundle", run / "bundle")
    after = Bundle.load(run / "bundle")
    chances = probabilities(after, Dataset.load(run).cases("test").histories[:4])
    assert all((chances[name] > 0).all() for name in ("n1", "n2", "n3"))
    lists = after.recommender.recommend([np.array([62, 3])], 65, exclude_seen=False)
    assert {"n1", "n2", "n3"} <= set(ids_of(after, lists.items[0]))


def test_new_items_are_reachable_at_once_and_old_ones_keep_their_ids(bundle: Path, run_dir: Path) -> None:
    before = Bundle.load(bundle)
    files = hashes(bundle)
    call(add_items.main, bundle.parent / "new.csv", "--bundle", bundle)
    after = Bundle.load(bundle)
    histories = Dataset.load(run_dir).cases("test").histories[:4]
    chances = probabilities(after, histories)
    assert chances.keys() == {*before.items["item_id"], "n1", "n2", "n3"}
    assert all((chances[name] > 0).all() for name in ("n1", "n2", "n3"))
    np.testing.assert_allclose(sum(chances.values()), 1, rtol=1e-4)
    lists = after.recommender.recommend(histories, 65, exclude_seen=False)
    assert {"n1", "n2", "n3"} <= set(ids_of(after, lists.items[0]))
    assert np.array_equal(after.sids.codes[:62], before.sids.codes)
    assert after.sids.n_distinct == 65
    ids = sidrec.Recommender.load(bundle).ids
    assert ids["item_id"].to_list() == after.items["item_id"].to_list()
    assert ids["sid"].to_list() == [after.sids.text(item) for item in range(65)]
    assert after.items[:62].equals(before.items)
    assert after.items[62:].rows() == [
        ("n1", 62, "The red kettle", "The red kettle. year: 1999", 1999),
        ("n2", 63, "The blue sled", "The blue sled. year: 2001", 2001),
        ("n3", 64, "n3", "n3", None),
    ]
    again = after.recommender.recommend([np.array([62, 3])], 5, exclude_seen=True)  # a new item in a history
    assert np.isfinite(again.log_probs).all()
    assert {name: files[name] for name in files} == {name: hashes(bundle)[name] for name in files}, (
        "nothing is rewritten"
    )


def test_a_new_item_gets_the_codes_of_an_old_one_with_its_text(bundle: Path) -> None:
    """Vectors are made as the old items' were: the quantizer gives the words of an untaken item its own nearest codes again."""
    table = pl.DataFrame({"item_id": ["twin"], "title": ["The silver spoon"], "year": [1990 + 60 % 7]})
    table.write_parquet(bundle.parent / "new.parquet")
    call(add_items.main, bundle.parent / "new.parquet", "--bundle", bundle)
    sids, items = Bundle.load(bundle).sids, Bundle.load(bundle).items
    assert items["text"][62] == items["text"][60]
    assert np.array_equal(sids.codes_raw[62], sids.codes_raw[60])


def test_an_item_that_is_known_is_changed_and_keeps_its_semantic_id_unless_new_ones_are_asked_for(bundle: Path) -> None:
    before = Bundle.load(bundle)
    change = bundle.parent / "change.jsonl"
    change.write_text('{"item_id": "i5", "title": "The green harp"}\n{"item_id": "i6", "title": "The red kite"}\n')
    titles = before.items["title"].to_list()
    assert [titles[5], titles[6]] == ["The red vase", "The red coin"]
    call(add_items.main, change, "--bundle", bundle)
    kept_ids = Bundle.load(bundle)
    assert kept_ids.items["title"].to_list()[5:7] == ["The green harp", "The red kite"]
    assert kept_ids.items["text"][5] == f"The green harp. year: {before.items['year'][5]}"
    assert kept_ids.items["year"].equals(before.items["year"]), "a column that the file lacks stays"
    assert np.array_equal(kept_ids.sids.codes, before.sids.codes)
    change.write_text('{"item_id": "i5", "title": "The blue drum", "year": null}\n{"item_id": "i7", "year": 1997}\n')
    call(add_items.main, change, "--bundle", bundle, "--new_sids", "true")
    new_ids = Bundle.load(bundle)
    moved = (new_ids.sids.codes != before.sids.codes).any(axis=1)
    assert moved[5]
    assert not np.delete(moved, [5, 7]).any()
    assert new_ids.items["year"][5] is None
    assert new_ids.items.row(7)[2:] == ("The red harp", "The red harp. year: 1997", 1997)
    assert new_ids.sids.n_distinct == 62


def test_removed_items_are_not_recommended_and_stand_in_histories_and_come_back(bundle: Path, run_dir: Path) -> None:
    before = Bundle.load(bundle)
    histories = Dataset.load(run_dir).cases("test").histories[:4]
    first = sorted({*ids_of(before, before.recommender.recommend(histories, 1, exclude_seen=True).items[:, 0])})
    call(remove_items.main, *first, "--bundle", bundle)
    after = Bundle.load(bundle)
    rows = [before.items["item_id"].to_list().index(name) for name in first]
    lists = after.recommender.recommend([*histories, np.array(rows)], 62, exclude_seen=False)
    assert not {*first} & {*ids_of(after, lists.items.ravel())}
    assert after.recommender.trie.n_items == (lists.items[0] >= 0).sum() == 62 - len(first)
    assert np.array_equal(after.sids.codes, before.sids.codes), "their semantic IDs stay theirs"
    back = bundle.parent / "back.csv"
    back.write_text("item_id\n" + "\n".join(first) + "\n")
    call(add_items.main, back, "--bundle", bundle)
    again = Bundle.load(bundle).recommender.recommend(histories, 10, exclude_seen=True)
    ours = before.recommender.recommend(histories, 10, exclude_seen=True)
    assert np.array_equal(again.items, ours.items)
    assert np.array_equal(again.log_probs, ours.log_probs)


def test_versions_are_listed_and_gone_back_to(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(add_items.main, bundle.parent / "new.csv", "--bundle", bundle)
    call(remove_items.main, "i3", "i4", "n1", "--bundle", bundle)
    call(catalogue.main, "--bundle", bundle, "--rollback", "2")
    assert len(Bundle.load(bundle).recommender.catalogue.snapshot.codes) == 65
    call(add_items.main, bundle.parent / "new.csv", "--bundle", bundle)  # nothing new: no version
    call(remove_items.main, "n3", "--bundle", bundle)
    made, current = versions.versions(bundle)
    counts = [(v.number, v.after, v.added, v.removed, v.changed, v.items) for v in made]
    assert counts == [(1, 0, 62, 0, 0, 62), (2, 1, 3, 0, 0, 65), (3, 2, 0, 3, 0, 62), (4, 2, 0, 1, 0, 64)]
    assert current == 4
    assert all(version.time.startswith("20") for version in made[1:])
    capsys.readouterr()
    call(catalogue.main, "--bundle", bundle)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert rows[3][-2:] == ["64", "current"]
    call(catalogue.main, "--bundle", bundle, "--rollback", "1")
    assert Bundle.load(bundle).items["item_id"].to_list()[-2:] == UNTAKEN
    with pytest.raises(InputError, match="has no version 5 of its catalogue; `sidrec catalogue"):
        call(catalogue.main, "--bundle", bundle, "--rollback", "5")


def test_old_versions_are_pruned_and_never_the_current_one(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):  # versions 2 to 7
        call(remove_items.main, f"i{number}", "--bundle", bundle)
    call(catalogue.main, "--bundle", bundle, "--rollback", "3")
    strangers = [bundle / "catalogue" / name for name in ("2024", "3 old")]
    for folder in strangers:
        folder.mkdir()
    for _ in range(2):  # the second time there is nothing to delete
        call(catalogue.main, bundle, "--prune", "2")
    said = capsys.readouterr().out
    assert "catalogue: 3 versions deleted" in said
    assert "catalogue: 0 versions deleted" in said
    made, current = versions.versions(bundle)
    assert all(folder.is_dir() for folder in strangers)
    assert ([version.number for version in made], current) == ([1, 3, 6, 7], 3)
    assert sorted(path.name for path in (bundle / "catalogue").glob("0*")) == ["0003", "0006", "0007"]
    assert len(Bundle.load(bundle).recommender.catalogue.snapshot.codes) == 62
    with pytest.raises(InputError, match="has no version 4 of its catalogue"):
        call(catalogue.main, "--bundle", bundle, "--rollback", "4")
    call(catalogue.main, "--bundle", bundle, "--rollback", "7")
    call(remove_items.main, "i9", "--bundle", bundle)
    assert versions.versions(bundle)[1] == 8
    with pytest.raises(InputError, match="--prune is 0; so many of the newest versions stay"):
        call(catalogue.main, bundle, "--prune", "0")
    call(catalogue.main, bundle, "--prune", "1")
    assert [version.number for version in versions.versions(bundle)[0]] == [1, 8]


def test_pruning_a_bundle_of_one_version_leaves_it(bundle: Path) -> None:
    before = hashes(bundle)
    assert versions.prune(bundle, 1) == 0
    assert {name: digest for name, digest in hashes(bundle).items() if not name.startswith(".")} == before


def test_a_reader_that_has_the_old_version_open_is_not_disturbed(bundle: Path) -> None:
    reader, history = Bundle.load(bundle), [np.array([1, 2])]
    before = reader.recommender.recommend(history, 62, exclude_seen=False)
    call(remove_items.main, "i3", "--bundle", bundle)
    call(add_items.main, bundle.parent / "new.csv", "--bundle", bundle)
    again = reader.recommender.recommend(history, 62, exclude_seen=False)
    assert np.array_equal(again.items, before.items)
    assert np.array_equal(again.log_probs, before.log_probs)


KILLED = """
import os, signal, sys
from sidrec.serving import add_items, versions
place, file, bundle = sys.argv[1:]
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
if place == "while saving": versions.save_trie = kill
elif place == "before the record": versions._record = kill
add_items.main([file, "--bundle", bundle])
"""


@pytest.mark.parametrize("place", ["while saving", "before the record"])
def test_a_writer_that_is_killed_leaves_the_version_before(bundle: Path, place: str) -> None:
    before = Bundle.load(bundle)
    command = [sys.executable, "-c", KILLED, place, str(bundle.parent / "new.csv"), str(bundle)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert versions.versions(bundle) == ([versions.Version(1, 0, "", 62, 0, 0, 62)], 1)
    assert Bundle.load(bundle).items.equals(before.items)
    call(add_items.main, bundle.parent / "new.csv", "--bundle", bundle)
    assert [version.number for version in versions.versions(bundle)[0]] == [1, 2]
    assert len(Bundle.load(bundle).items) == 65


def test_two_writers_at_once_are_refused(bundle: Path) -> None:
    waiting = f"""
import sys; from pathlib import Path; from sidrec.serving.versions import changing
with changing(Path({str(bundle)!r})):
    print("held", flush=True); sys.stdin.read()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", waiting], env=environment, text=True, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"is being made by process {other.pid} right now"):
            call(remove_items.main, "i3", "--bundle", bundle)
        assert len(Bundle.load(bundle).items) == 62, "readers wait for nobody"
        other.stdin.close()
    call(remove_items.main, "i3", "--bundle", bundle)


def test_a_new_domain_with_an_old_codebook(bundle: Path, run_dir: Path) -> None:
    """Every item is of another shop, most without a word that the encoder knows; the old ones go."""
    names = [f"Roman {i} volume" if i % 2 else f"Der golden {i}" for i in range(100)]
    pl.DataFrame({"item_id": [f"book{i}" for i in range(100)], "title": names}).write_csv(bundle.parent / "books.csv")
    old = Bundle.load(bundle).items["item_id"].to_list()
    call(add_items.main, bundle.parent / "books.csv", "--bundle", bundle)
    call(remove_items.main, *old, "--bundle", bundle)
    after = Bundle.load(bundle)
    chances = probabilities(after, Dataset.load(run_dir).cases("test").histories[:2])
    assert chances.keys() == {f"book{i}" for i in range(100)}
    assert min(chance.min() for chance in chances.values()) > 0
    assert after.sids.n_distinct == 162


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add-items", "colour.csv"], r"has a column 'colour', which the catalogue does not have \(it has item_id, title, year\)"),
        (["add-items", "twice.csv"], "item_id 'n1' is in rows 1 and 2"),
        (["add-items", "untitled.csv"], "item 'n9' is new, and the file has no column 'title'"),
        (["add-items", "latin.csv"], "is not utf-8 text .* name its encoding with --encoding"),
        (["add-items", "missing.csv"], "missing.csv does not exist"),
        (["add-items", "many.csv"], "200 new items need semantic IDs, but only 194 of the 256 are free"),
        (["add-items", "new.csv", "--vectors", "new.npy"], "names 1 files, but 0 of the sources text collaborative are files"),
        (["remove-items", "--ids"], "--ids names no item; give the item_id of one at least"),
        (["remove-items", "i333"], "the catalogue has no item 'i333'; near it are i33"),
        (["remove-items", *[f"i{i}" for i in range(62)]], "all 62 items would be removed"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_sentence_and_changes_nothing(
    bundle: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    Path("colour.csv").write_text("item_id,title,colour\nn1,A,red\n")
    Path("twice.csv").write_text("item_id,title\nn1,A\nn1,B\n")
    Path("untitled.csv").write_text("item_id,year\ni5,1990\nn9,1990\n")
    Path("latin.csv").write_bytes("item_id,title\nn1,Café\n".encode("latin-1"))
    Path("many.csv").write_text("item_id,title\n" + "".join(f"m{i},red\n" for i in range(200)))
    script = {"add-items": "serving/add_items.py", "remove-items": "serving/remove_items.py"}[words[0]]
    assert exit_code(script, *words[1:], "--bundle", bundle) == 2
    said = capsys.readouterr().err
    assert_one_sentence(said)
    assert pl.Series([" ".join(said.split())]).str.contains(message)[0], said
    assert versions.versions(bundle)[1] == 1


def test_a_changed_file_of_a_version_is_refused(bundle: Path) -> None:
    call(add_items.main, bundle.parent / "new.csv", "--bundle", bundle)
    second = bundle / "catalogue" / "0002"
    for file in ("items.parquet", "semantic_ids/trie.safetensors", "semantic_ids/codes_all.npy"):
        content = (second / file).read_bytes()
        (second / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InputError, match=r"0002/.* is not the file that its manifest lists.*--rollback N"):
            Bundle.load(bundle)
        (second / file).write_bytes(content)
    record = bundle / "catalogue" / "versions.json"
    text = record.read_text()
    record.write_text(text.replace('"current": 2', '"current": 1'))
    with pytest.raises(InputError, match=r"versions.json is not as it was written"):
        Bundle.load(bundle)
    record.write_text(text)
    shutil.rmtree(second)
    with pytest.raises(InputError, match="0002 is missing or not whole"):
        call(remove_items.main, "i3", "--bundle", bundle)
    call(catalogue.main, "--bundle", bundle, "--rollback", "1")
    assert len(Bundle.load(bundle).items) == 62


def test_versions_of_other_semantic_ids_are_refused_when_the_bundle_is_made_again(
    run_dir: Path, bundle: Path, tmp_path: Path
) -> None:
    call(add_items.main, bundle.parent / "new.csv", "--bundle", bundle)
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    shutil.copytree(bundle / "catalogue", other / "bundle" / "catalogue")
    call(make_bundle.main, "--run_dir", other, "--overwrite", "true")
    assert len(Bundle.load(other / "bundle").items) == 65, "retrained on the same semantic IDs, it keeps its versions"
    call(quantize.main, "--run_dir", other, *SMALL, "--seed", "1", "--overwrite", "true")
    run_stage(train, other, overwrite=True, max_steps=4, **RQ_FLAGS)
    call(make_bundle.main, "--run_dir", other, "--overwrite", "true")
    with pytest.raises(InputError, match="0002 is of other semantic IDs than the bundle's model"):
        Bundle.load(other / "bundle")
    call(catalogue.main, "--bundle", other / "bundle", "--rollback", "1")
    assert len(Bundle.load(other / "bundle").items) == 62


def test_an_update_has_what_was_added_changed_and_removed(
    run_dir: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through `sidrec update` and `sidrec bundle`: ids, semantic IDs and texts, and what was removed stays away."""
    run, updated = tmp_path / "run", tmp_path / "run" / "updates" / "0001"
    shutil.copytree(run_dir, run)
    call(add_items.main, tmp_path / "new.csv", "--bundle", run / "bundle")
    call(remove_items.main, "i3", "--bundle", run / "bundle")
    before = Bundle.load(run / "bundle")
    rows = [(f"u{user}", f"i{(7 * user + step) % 60}", 100 + step) for user in range(60) for step in range(10)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "events.csv")
    with contextlib.suppress(SystemExit):  # whether it is better is not asked here
        call(update.main, "--run_dir", run, "--interactions", tmp_path / "events.csv", "--passes", "1")
    call(make_bundle.main, "--run_dir", updated)
    assert f"its catalogue is that of {run / 'bundle'}: version 3, 64 items" in capsys.readouterr().out
    after = Bundle.load(updated / "bundle")
    assert after.items.equals(before.items)
    assert np.array_equal(after.sids.codes, before.sids.codes)
    assert versions.versions(updated / "bundle") == versions.versions(run / "bundle")
    history = [np.array([62, 1])]
    lists = [each.recommender.recommend(history, 65, exclude_seen=False) for each in (before, after)]
    assert not np.allclose(lists[0].log_probs[0, :64], lists[1].log_probs[0, :64]), "the weights are other ones"
    assert {*ids_of(after, lists[1].items[0])} == {*before.items["item_id"]} - {"i3"}
    call(remove_items.main, "n2", "--bundle", updated / "bundle")
    call(make_bundle.main, "--run_dir", updated)  # again: what was changed since stays
    call(make_bundle.main, "--run_dir", updated, "--catalogue_of", run / "bundle")
    assert versions.versions(updated / "bundle")[1] == 4
    call(remove_items.main, "i5", "--bundle", bundle)
    with pytest.raises(InputError, match=r"which those of .* would replace; pass --overwrite true"):
        call(make_bundle.main, "--run_dir", updated, "--catalogue_of", bundle)
    call(make_bundle.main, "--run_dir", updated, "--catalogue_of", bundle, "--overwrite", "true")
    assert versions.versions(updated / "bundle") == versions.versions(bundle)
    codes = bundle / "semantic_ids" / "codes_all.npy"
    np.save(codes, np.load(codes)[::-1])
    with pytest.raises(InputError, match="is of other semantic IDs"):
        versions.take_over(updated / "bundle", bundle)
    shutil.rmtree(bundle / "catalogue")
    with pytest.raises(InputError, match="was made with other items or semantic IDs"):
        versions.take_over(updated / "bundle", bundle)


def test_the_catalogue_of_an_update_is_that_of_the_newest_bundle_before_it(tmp_path: Path) -> None:
    for place in ("bundle", "updates/0001/bundle", "updates/0002/data", "updates/0003/bundle", "updates/0004/data"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "updates" / "latest").symlink_to("0003")
    earlier = {name: make_bundle.earlier_bundle(tmp_path / "updates" / name) for name in ("0001", "0002", "latest")}
    assert earlier == {
        "0001": tmp_path / "bundle",
        "0002": tmp_path / "updates" / "0001" / "bundle",
        "latest": tmp_path / "updates" / "0001" / "bundle",
    }
    assert make_bundle.earlier_bundle(tmp_path) is None


def test_an_older_bundle_and_one_without_encoders_are_refused(bundle: Path) -> None:
    about = json.loads((bundle / "bundle.json").read_text())
    rewrite(bundle, "bundle.json", about | {"format_version": 1})
    with pytest.raises(InputError, match=r"bundle.json has format 1, this version reads 2; run `sidrec bundle"):
        Bundle.load(bundle)
    rewrite(bundle, "bundle.json", about | {"sources": None})
    with pytest.raises(InputError, match="does not say how its items' texts and vectors are made"):
        call(add_items.main, bundle.parent / "new.csv", "--bundle", bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "has format 3, this version reads 2; install the newer sidrec"),
        ({"format_version": "2"}, "has format 2, this version reads 2; run `sidrec bundle"),
        ({"model": None}, "has model = None, which no bundle has"),
        ({"weight": "much"}, "has weight = much, which no bundle has"),
        ({"weight": float("nan")}, "has weight = nan"),
        ({"sources": "text"}, "has sources = text"),
        ({"text_columns": [1]}, "has text_columns = "),
    ],
)
def test_a_bundle_that_says_what_none_says_is_refused(bundle: Path, change: dict, message: str) -> None:
    about = json.loads((bundle / "bundle.json").read_text())
    rewrite(bundle, "bundle.json", about | change)
    with pytest.raises(InputError, match=re.escape(message)):
        Bundle.load(bundle)
    rewrite(bundle, "bundle.json", [1])
    with pytest.raises(InputError, match="has format None"):
        Bundle.load(bundle)


def test_a_damaged_encoder_is_not_bundled(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    file = tmp_path / "run" / "embeddings" / "encoders.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"encoders\.safetensors is not the file that"):
        call(make_bundle.main, "--run_dir", tmp_path / "run", "--overwrite", "true")


def rewrite(bundle: Path, name: str, content: object) -> None:
    """Another content of a file, as if the bundle had been made with it."""
    (bundle / name).write_text(json.dumps(content))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["outputs"][name] = {"sha256": sha256(bundle / name), "bytes": (bundle / name).stat().st_size}
    versions.write_manifest(bundle / "manifest.json", {key: manifest[key] for key in manifest if key != "sha256"})


def test_vectors_of_the_users_own_come_with_the_file(run_dir: Path, tmp_path: Path) -> None:
    """A source that was a file is a file again, with a row for each row of the items' file."""
    rng, run = np.random.default_rng(0), tmp_path / "run"
    shutil.copytree(run_dir, run)
    images = rng.standard_normal((62, 5)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    sources = ["--sources", "text", tmp_path / "images.npy", "--weights", "0.001", "1"]
    for stage in (embed.main, quantize.main):
        call(stage, "--run_dir", run, *SMALL, *sources, "--overwrite", "true")
    run_stage(train, run, overwrite=True, max_steps=4, **RQ_FLAGS)
    call(make_bundle.main, "--run_dir", run, "--overwrite", "true")
    (tmp_path / "new.csv").write_text("item_id,title\ni5,The red boat\nn1,A\nn2,B\n")
    np.save(tmp_path / "new.npy", images[[0, 33, 9]])
    command = [tmp_path / "new.csv", "--bundle", run / "bundle"]
    with pytest.raises(InputError, match="names 0 files, but 1 of the sources"):
        call(add_items.main, *command)
    call(add_items.main, *command, "--vectors", tmp_path / "new.npy")
    raw = Bundle.load(run / "bundle").sids.codes_raw
    assert np.array_equal(raw[62:], raw[[33, 9]])
    np.save(tmp_path / "new.npy", images[:2])
    with pytest.raises(InputError, match="has 2 rows, but the file of items has 3"):
        call(add_items.main, *command, "--vectors", tmp_path / "new.npy")


def test_a_removed_items_row_needs_its_codes() -> None:
    """`LiveCatalogue` with holes: the codes of what was there make histories readable."""
    from sidrec.decoding.catalogue import LiveCatalogue
    from sidrec.decoding.trie import SidTrie

    codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
    trie = SidTrie(codes[[0, 2]], [2, 2], torch.tensor([0, 2]), 3)
    asked = torch.tensor([0, 1, 2, 3])
    assert LiveCatalogue(trie).snapshot.never_held(asked).tolist() == [1, 3]
    assert LiveCatalogue(trie, codes).snapshot.never_held(asked).tolist() == [3]

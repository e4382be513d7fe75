"""The two entry points and run_tokenizer.sh on a small data stage made by hand."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from sidrec.data.dataset import Dataset
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256
from sidrec.pipeline.stage import Stage
from sidrec.tokenizer import add_items, embed, quantize
from sidrec.tokenizer.config import parse_arguments
from sidrec.tokenizer.embeddings import item_vectors, sources
from sidrec.tokenizer.interchange import read_codes, write_codes
from sidrec.tokenizer.quantizers.level_sizes import check_level_sizes, fitting_level_sizes
from sidrec.tokenizer.semantic_ids import SemanticIds

ROOT = Path(__file__).resolve().parents[2]
N_ITEMS = 60
SMALL = ["--level_sizes", "8", "8", "--text_dim", "8", "--collaborative_dim", "8"]


def small_dataset() -> Dataset:
    """60 items of 6 kinds and 40 users who each like one kind; the last two interactions of a user are valid and test."""
    rng = np.random.default_rng(0)
    kinds = ["tea", "lamp", "boot", "drum", "rope", "vase"]
    colours = ["red", "blue", "green", "black", "white"]
    titles = [f"{colours[item % 5]} {kinds[item // 10]}" for item in range(N_ITEMS)]
    items = pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(N_ITEMS)],
            "item_index": range(N_ITEMS),
            "title": titles,
            "text": titles,
        }
    )
    rows = []
    for user in range(40):
        chosen = rng.choice(10, 8, replace=False) + 10 * (user % 6)
        splits = ["train"] * 6 + ["valid", "test"]
        rows += [
            (f"u{user}", int(item), time, split) for time, (item, split) in enumerate(zip(chosen, splits, strict=True))
        ]
    interactions = pl.DataFrame(rows, schema=["user_id", "item_index", "timestamp", "split"], orient="row")
    return Dataset(items, interactions, {"name": "small"})


def write_data_stage(run_dir: Path, dataset: Dataset) -> None:
    with Stage(run_dir, "data", {"dataset": "small"}).building(overwrite=True) as folder:
        dataset.save(folder)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_data_stage(tmp_path / "run", small_dataset())
    return tmp_path / "run"


Command = Callable[..., None]


@pytest.fixture
def command(run_dir: Path) -> Command:
    """Call an entry point in this process."""

    def call(module: object, *flags: str) -> None:
        module.main(["--run_dir", str(run_dir), *flags])  # type: ignore[attr-defined]

    return call


def hashes(folder: Path) -> dict[str, str]:
    """Of all files but the log, which tells the time."""
    return {path.name: sha256(path) for path in folder.iterdir() if path.name != "log.txt"}


def test_both_stages_make_every_file(run_dir: Path, command: Command) -> None:
    command(embed, *SMALL)
    command(quantize, *SMALL)
    for name in ("text", "collaborative"):
        vectors = np.load(run_dir / "embeddings" / f"{name}.npy")
        assert vectors.shape == (N_ITEMS, 8)
        assert vectors.dtype == np.float32
    sids = SemanticIds.load(run_dir)
    assert sids.codes.shape == (N_ITEMS, 2)
    assert sids.level_sizes == [8, 8]
    report = json.loads((run_dir / "sid" / "report.json").read_text())
    assert report["items"] == N_ITEMS
    assert sorted(path.name for path in (run_dir / "sid").iterdir()) == [
        "codebooks.npz",
        "codes_all.npy",
        "codes_raw.npy",
        "log.txt",
        "manifest.json",
        "quantizer.safetensors",
        "report.html",
        "report.json",
        "sid.json",
    ]


def test_items_of_one_kind_share_first_codes(run_dir: Path, command: Command) -> None:
    """What semantic IDs are for: two items with one first code are nearly always of one kind, as users see it."""
    command(embed, *SMALL)
    command(
        quantize, *SMALL, "--weights", "0.1", "1", "--level_sizes", "8", "16"
    )  # room for a kind of 10 under one first code
    first = SemanticIds.load(run_dir).codes[:, 0]
    kind = np.arange(N_ITEMS) // 10
    same_code = (first[:, None] == first) & ~np.eye(N_ITEMS, dtype=bool)
    assert (kind[:, None] == kind)[same_code].mean() > 0.9


def test_two_runs_of_one_seed_write_the_same_bytes(run_dir: Path, command: Command, tmp_path: Path) -> None:
    command(embed, *SMALL)
    command(quantize, *SMALL)
    first = hashes(run_dir / "embeddings"), hashes(run_dir / "sid")
    for folder in ("embeddings", "sid"):
        shutil.rmtree(run_dir / folder)
    command(embed, *SMALL)
    command(quantize, *SMALL)
    assert (hashes(run_dir / "embeddings"), hashes(run_dir / "sid")) == first


def test_a_finished_stage_is_skipped_and_an_interrupted_one_made_again(
    run_dir: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(embed, *SMALL)

    def ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(quantize, "write_json", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            command(quantize, *SMALL)
    with pytest.raises(InputError, match="holds no finished 'sid' stage"):
        SemanticIds.load(run_dir)
    assert not (run_dir / "sid").exists()
    command(quantize, *SMALL)
    assert SemanticIds.load(run_dir).n_items == N_ITEMS
    with monkeypatch.context() as patched:
        patched.setattr(quantize, "semantic_ids", None)  # would fail if it were called
        patched.setattr(embed, "compute", None)
        command(embed, *SMALL)
        command(quantize, *SMALL)
        command(embed)  # without a flag: the last settings
        command(quantize)


def test_other_settings_are_refused_until_overwrite(run_dir: Path, command: Command) -> None:
    command(embed, *SMALL)
    command(quantize, *SMALL)
    other = [*SMALL[:1], "16", "4", *SMALL[3:]]
    with pytest.raises(InputError, match=r"level_sizes=\[8, 8\], not \[16, 4\].*--overwrite true"):
        command(quantize, *other)
    command(quantize, *other, "--overwrite", "true")
    assert SemanticIds.load(run_dir).level_sizes == [16, 4]


def test_changed_data_are_noticed(run_dir: Path, command: Command) -> None:
    command(embed, *SMALL)
    dataset = small_dataset()
    write_data_stage(
        run_dir, Dataset(dataset.items.with_columns(text=pl.col("title") + " new"), dataset.interactions, {})
    )
    with pytest.raises(InputError, match=r"embeddings was made from another .*items.parquet"):
        command(quantize, *SMALL)


def test_validation_and_test_interactions_do_not_enter_the_vectors(run_dir: Path, command: Command) -> None:
    command(embed, *SMALL)
    before = sha256(run_dir / "embeddings" / "collaborative.npy")
    dataset = small_dataset()
    held_out = pl.col("split") != "train"
    moved = dataset.interactions.with_columns(item_index=pl.when(held_out).then(0).otherwise("item_index"))
    write_data_stage(run_dir, Dataset(dataset.items, moved, {}))
    command(embed, *SMALL, "--overwrite", "true")
    assert sha256(run_dir / "embeddings" / "collaborative.npy") == before


def test_own_vectors_are_a_source(run_dir: Path, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "own.npy"
    np.save(file, np.random.default_rng(0).standard_normal((N_ITEMS, 5)))
    chosen = ["--sources", "text", str(file), "--weights", "1", "0.5"]
    command(embed, *SMALL, *chosen)
    command(quantize, *SMALL, *chosen)
    assert SemanticIds.load(run_dir).codebooks[0].shape == (8, 8 + 5)


def test_own_vectors_alone_need_no_embeddings_stage(run_dir: Path, command: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.random.default_rng(0).standard_normal((N_ITEMS, 5)))
    command(quantize, "--level_sizes", "8", "8", "--sources", str(tmp_path / "own.npy"))
    assert SemanticIds.load(run_dir).n_items == N_ITEMS


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", "1"], r"weights \[1.0\] must be one number for each of the sources \['text', 'collaborative'\]"),
        (["--weights", "1", "-2"], "must be numbers above 0"),
        (["--sources", "image"], "sources holds 'image'"),
        (["--sources", "text", "text"], "names a source twice"),
        (["--level_sizes", "8", "1"], "whole numbers of at least 2"),
        (["--level_sizes", *["2"] * 9], "has 9 levels"),
        (["--level_sizes", "8", "61"], r"60 items, fewer than the 61 codes of level 2; --level_sizes 8 8 would fit"),
        (["--level_sizes", "7", "8"], r"7 x 8 = 56 semantic IDs, fewer than the 60 items; --level_sizes 8 8 would fit"),
        (["--window", "0"], "window is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_work(command: Command, flags: list[str], message: str) -> None:
    command(embed, *SMALL)
    with pytest.raises(InputError, match=message):
        command(quantize, *SMALL, *flags)


def test_a_missing_stage_names_its_command(run_dir: Path, command: Command) -> None:
    with pytest.raises(InputError, match=r"run `sidrec tokenize --run_dir .* --sources text collaborative` first"):
        command(quantize, *SMALL)
    command(embed, *SMALL, "--sources", "text")
    with pytest.raises(InputError, match=r"collaborative.npy does not exist; run `sidrec tokenize .*--overwrite true`"):
        command(quantize, *SMALL)
    shutil.rmtree(run_dir / "data")
    with pytest.raises(InputError, match=r"sidrec prepare"):
        command(embed, *SMALL)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (
            np.where(np.arange(N_ITEMS * 2).reshape(-1, 2) == 85, np.nan, 1.0),
            r"own.npy holds NaN or infinity in row 42",
        ),
        (
            np.zeros((59, 2)),
            r"own.npy holds float64 of shape \[59, 2\]; it must hold numbers, one row for each of the 60",
        ),
        (np.array([["a"]] * N_ITEMS), "own.npy holds <U1"),
        (np.zeros((N_ITEMS, 2), dtype=complex), "own.npy holds complex128"),
        (np.zeros((N_ITEMS, 0)), r"own.npy holds float64 of shape \[60, 0\]"),
        (
            np.where(np.arange(N_ITEMS) % 20 == 7, 0.0, 1.0)[:, None] * np.random.default_rng(0).random((N_ITEMS, 3)),
            r"own.npy holds only zeros in row 7 \(and 2 other rows\)",
        ),
        (
            np.where(np.arange(4) % 2, 5.0, np.random.default_rng(0).random((N_ITEMS, 4))),
            r"own.npy holds the same number in every row of column 1 \(and 1 other column\)",
        ),
        (np.full((N_ITEMS, 2), 1e300), r"own.npy holds NaN or infinity in row 0 \(and 59 other rows\)"),
    ],
)
def test_wrong_own_vectors_are_named(command: Command, tmp_path: Path, vectors: np.ndarray, message: str) -> None:
    np.save(tmp_path / "own.npy", vectors)
    with pytest.raises(InputError, match=message):
        command(quantize, "--level_sizes", "8", "8", "--sources", str(tmp_path / "own.npy"))


def test_sources_are_checked_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong only in the last piece is found, and no more than a piece is in memory: a file larger than memory can be read."""
    monkeypatch.setattr(item_vectors, "CHUNK", 100)
    rows = np.random.default_rng(0).random((450, 3))
    np.save(tmp_path / "own.npy", rows)
    pieces: list[int] = []
    real = sources.chunks
    monkeypatch.setattr(sources, "chunks", lambda array: (pieces.append(len(c)) or (r, c) for r, c in real(array)))
    assert isinstance(sources.read_source(tmp_path / "own.npy", 450), np.memmap)
    assert pieces == [100, 100, 100, 100, 50]
    rows[449, 2] = np.nan
    np.save(tmp_path / "own.npy", rows)
    with pytest.raises(InputError, match="NaN or infinity in row 449;"):
        sources.read_source(tmp_path / "own.npy", 450)
    rows[:, 2], rows[0, 2] = 1.0, 2.0  # differs in the first piece alone
    np.save(tmp_path / "own.npy", rows)
    sources.read_source(tmp_path / "own.npy", 450)


def test_wrong_own_files_are_named(command: Command, tmp_path: Path) -> None:
    flags = ["--level_sizes", "8", "8", "--sources", str(tmp_path / "own.npy")]
    with pytest.raises(InputError, match=r"own.npy does not exist; correct --sources"):
        command(quantize, *flags)
    (tmp_path / "own.npy").write_text("1,2,3")
    with pytest.raises(InputError, match=r"own.npy cannot be read as an .npy file"):
        command(quantize, *flags)


def test_own_files_are_checked_before_vectors_are_made_beside_them(
    run_dir: Path, command: Command, tmp_path: Path
) -> None:
    command(embed, *SMALL)
    before, flags = hashes(run_dir / "embeddings"), ["--sources", "text", str(tmp_path / "own.npy")]
    with pytest.raises(InputError, match=r"own.npy does not exist; correct --sources"):
        command(embed, *SMALL, *flags, "--weights", "1", "1", "--overwrite", "true")
    (tmp_path / "own.npy").write_text("hello vectors")
    with pytest.raises(InputError, match=r"own.npy cannot be read as an .npy file"):
        command(embed, *SMALL, *flags, "--weights", "1", "1", "--overwrite", "true")
    assert hashes(run_dir / "embeddings") == before


def test_a_failed_overwrite_keeps_the_last_good_vectors(
    run_dir: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(embed, *SMALL)
    before = hashes(run_dir / "embeddings")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match="pip install"):
        command(embed, *SMALL, "--text_encoder", "some/model", "--overwrite", "true")
    assert hashes(run_dir / "embeddings") == before


# other quantizers, and other ways of being unique

SHORT = ["--hidden_sizes", "16", "--training_steps", "20", "--batch_size", "32", "--warmup_steps", "2"]
FSQ = ["--quantizer", "fsq", "--fsq_levels", "4", "3", "--fsq_tokens", "2", *SHORT]


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        (FSQ, [12, 12]),
        (["--quantizer", "rqkmeans_fsq", "--level_sizes", "8", "12", "--fsq_levels", "4", "3"], [8, 12]),
        (["--quantizer", "random", "--level_sizes", "8", "8"], [8, 8]),
        (["--quantizer", "random", "--level_sizes", "8", "--unique", "own_token"], [8, N_ITEMS]),
    ],
    ids=["fsq", "rqkmeans_fsq", "random", "random_own_token"],
)
def test_every_quantizer_gives_unique_semantic_ids(
    run_dir: Path, command: Command, flags: list[str], sizes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    command(embed, *SMALL)
    command(quantize, *flags)
    sids = SemanticIds.load(run_dir)
    assert sids.level_sizes == sizes
    assert " x ".join(map(str, sizes)) + " codes" in " ".join(capsys.readouterr().out.split())
    first = hashes(run_dir / "sid")
    shutil.rmtree(run_dir / "sid")
    command(quantize, *flags)
    assert hashes(run_dir / "sid") == first


def test_random_codes_say_nothing_about_items(run_dir: Path, command: Command) -> None:
    """Items of one kind share a first code as often as any two items."""
    command(embed, *SMALL)
    command(quantize, "--quantizer", "random", "--level_sizes", "4", "16")
    sids = SemanticIds.load(run_dir)
    np.testing.assert_array_equal(sids.codes, sids.codes_raw)
    same_code = (sids.codes[:, :1] == sids.codes[:, 0]) & ~np.eye(N_ITEMS, dtype=bool)
    same_kind = (np.arange(N_ITEMS)[:, None] // 10 == np.arange(N_ITEMS) // 10)[same_code].mean()
    assert same_kind < 0.3  # 9 of 59 others are of one's kind


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*FSQ, "--level_sizes", "8", "8"], "level_sizes is 8 8, but fsq_levels 4 3 give 12 12 for 2 tokens"),
        ([*FSQ, "--fsq_tokens", "1"], "level_sizes give 12 = 12 semantic IDs, fewer than the 60 items"),
        ([*FSQ, "--fsq_tokens", "9"], "9 levels are too many"),
        ([*FSQ, "--fsq_tokens", "8", "--unique", "dedup_token"], "8 levels and a dedup token are too many"),
        ([*FSQ, "--fsq_tokens", "8", "--unique", "own_token"], "8 levels and an own token are too many"),
        (
            ["--quantizer", "rqkmeans_fsq", "--level_sizes", "8", "8"],
            "the last of level_sizes is 8, .* write 240 there",
        ),
        (["--quantizer", "rqkmeans_fsq", "--level_sizes", "61", "240"], "fewer than the 61 codes of level 1"),
        (["--quantizer", "random", "--level_sizes", "7", "8", "--unique", "none"], "fewer than the 60 items"),
        (["--quantizer", "random", "--fsq_tokens", "2"], "--fsq_tokens is not a setting"),
        (["--quantizer", "fsq", "--fsq_token", "2"], "--fsq_token is not a setting; the nearest one is --fsq_tokens"),
        (["--quantizer", "rqkmean"], "quantizer is 'rqkmean'; it must be one of rqkmeans, rqkmeans_plus"),
        (["--unique", "never"], "unique is 'never'"),
    ],
)
def test_other_settings_that_cannot_work_are_refused(command: Command, flags: list[str], message: str) -> None:
    command(embed, *SMALL)
    with pytest.raises(InputError, match=message):
        command(quantize, *flags)


def test_a_dedup_token_counts_the_items_with_equal_codes(run_dir: Path, command: Command) -> None:
    command(embed, *SMALL)
    command(quantize, *SMALL, "--level_sizes", "3", "3", "--unique", "dedup_token")  # 9 paths for 60 items
    sids = SemanticIds.load(run_dir)
    assert sids.quantizer is not None
    assert sids.quantizer.codebooks.sizes == [3, 3]
    seen: dict[tuple[int, ...], int] = {}
    for path, place in zip(sids.codes[:, :2].tolist(), sids.codes[:, 2].tolist(), strict=True):
        assert place == seen.get(tuple(path), 0)
        seen[tuple(path)] = place + 1
    assert sids.level_sizes == [3, 3, max(seen.values())]
    np.testing.assert_array_equal(sids.codes_raw, np.column_stack([sids.codes[:, :2], np.zeros(N_ITEMS)]))
    assert not sids.codebooks[2].any()
    assert sids.text(0).count("<") == 3


def test_an_own_token_is_a_code_for_every_item(
    run_dir: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(embed, *SMALL)
    command(quantize, *SMALL, "--level_sizes", "4", "--unique", "own_token")
    sids = SemanticIds.load(run_dir)
    assert sids.level_sizes == [4, N_ITEMS]
    np.testing.assert_array_equal(sids.codes[:, 1], np.arange(N_ITEMS))
    files = [run_dir / "embeddings" / f"{source}.npy" for source in ("text", "collaborative")]
    vectors = item_vectors.ItemVectors([np.load(file) for file in files], [1.0, 1.0])
    whole = sids.codebooks[0][sids.codes[:, 0]] + sids.codebooks[1]  # nothing of an item is left over
    np.testing.assert_allclose(whole, vectors[:], atol=1e-6)
    command(quantize, "--unique", "own_token", "--level_sizes", "--overwrite", "true")
    assert SemanticIds.load(run_dir).level_sizes == [2, N_ITEMS]  # chosen: about 16 items a code
    by_size = Path(shutil.copytree(run_dir, run_dir.with_name("by_size")))
    command(quantize, "--run_dir", str(by_size), "--unique", "by_size", "--overwrite", "true")
    assert np.array_equal(SemanticIds.load(by_size).codes, SemanticIds.load(run_dir).codes)
    monkeypatch.setattr("sidrec.tokenizer.config.MOST_OWN_TOKENS", N_ITEMS - 1)
    command(quantize, "--run_dir", str(by_size), "--unique", "by_size", "--overwrite", "true")
    assert len(SemanticIds.load(by_size).level_sizes) == 2
    assert len(set(SemanticIds.load(by_size).codes[:, 1])) < N_ITEMS


def test_codes_may_stay_as_they_are_to_look_at(
    run_dir: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command(embed, *SMALL)
    command(quantize, *SMALL, "--level_sizes", "3", "3", "--unique", "none")
    sids = SemanticIds.read(run_dir / "sid")
    np.testing.assert_array_equal(sids.codes, sids.codes_raw)
    assert f"{N_ITEMS - sids.n_distinct} items share their semantic ID" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(InputError, match=r"--unique assign"):
        SemanticIds.load(run_dir)


def test_a_run_takes_codes_that_were_made_elsewhere(run_dir: Path, command: Command, tmp_path: Path) -> None:
    """Also as the way back: what a run wrote, with its codebooks, gives the same run."""
    command(embed, *SMALL)
    command(quantize, *SMALL, "--unique", "none")
    made = SemanticIds.read(run_dir / "sid")
    write_codes(tmp_path / "X.index.json", made.codes, offset=1)
    shutil.copy(run_dir / "sid" / "codebooks.npz", tmp_path / "books.npz")
    flags = ["--quantizer", "given", "--codes_file", str(tmp_path / "X.index.json"), "--codes_offset", "1"]
    command(
        quantize, *flags, "--codebooks_file", str(tmp_path / "books.npz"), "--unique", "assign", "--overwrite", "true"
    )
    given = SemanticIds.load(run_dir)
    np.testing.assert_array_equal(given.codes_raw, made.codes)
    for book, other in zip(given.codebooks, made.codebooks, strict=True):
        np.testing.assert_array_equal(book, other)
    command(quantize, "--quantizer", "rqkmeans", *SMALL, "--overwrite", "true")
    np.testing.assert_array_equal(SemanticIds.load(run_dir).codes, given.codes)
    command(
        quantize, *flags, "--codebooks_file", "none", "--unique", "dedup_token", "--overwrite", "true"
    )  # codebooks of the items' own vectors
    fitted = SemanticIds.load(run_dir)
    np.testing.assert_array_equal(fitted.codes[:, :2], made.codes)
    assert fitted.codebooks[0].shape == (made.codes[:, 0].max() + 1, 16)
    write_codes(tmp_path / "X.index.json", made.codes[::-1], offset=1)
    with pytest.raises(InputError, match=r"was made from another .*X.index.json"):
        command(quantize, *flags, "--codebooks_file", "none", "--unique", "dedup_token")


def test_new_items_get_semantic_ids_from_the_command_line(
    run_dir: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    old, new = rng.standard_normal((N_ITEMS, 5)), rng.standard_normal((7, 5))
    new[3], new[5] = old[11], new[2]
    np.save(tmp_path / "own.npy", old)
    np.save(tmp_path / "new.npy", new)
    command(quantize, "--level_sizes", "8", "16", "--sources", str(tmp_path / "own.npy"))
    before = hashes(run_dir / "sid")
    capsys.readouterr()
    flags = ["--vectors", str(tmp_path / "new.npy"), "--write_file", str(tmp_path / "new.index.json")]
    flags += ["--catalogue", str(tmp_path / "own.npy")]
    command(add_items, *flags)
    printed = " ".join(capsys.readouterr().out.split())
    assert "7 new items" in printed
    assert "row 3 is exactly item 11" in printed
    assert "row 5 is exactly row 2" in printed
    codes, _ = read_codes(tmp_path / "new.index.json")
    sids = SemanticIds.load(run_dir)
    assert len(np.unique(np.concatenate([sids.codes, codes]), axis=0)) == N_ITEMS + 7
    assert hashes(run_dir / "sid") == before
    assert sids.quantizer is not None
    scaled = (new / np.linalg.norm(new, axis=1, keepdims=True)).astype(np.float32)
    free = [row for row, path in enumerate(sids.quantizer.encode(scaled).tolist()) if path not in sids.codes.tolist()]
    assert codes[free[0]].tolist() == sids.quantizer.encode(scaled)[free[0]].tolist()
    np.save(tmp_path / "new.npy", new[:, :4])
    with pytest.raises(InputError, match=r"sources have \[4\] numbers a row"):
        command(add_items, *flags)
    with pytest.raises(InputError, match=r"sources have \[4, 4\]"):
        command(add_items, "--vectors", *[str(tmp_path / "new.npy")] * 2, *flags[2:])


@pytest.mark.parametrize("n_items", [2, 3, 7, 60, 480, 1682, 3416, 12101, 10**6])
@pytest.mark.parametrize("n_levels", [1, 2, 3, 4])
def test_suggested_level_sizes_fit(n_items: int, n_levels: int) -> None:
    check_level_sizes(fitting_level_sizes(n_items, n_levels), n_items)


def test_suggested_level_sizes_for_known_catalogues() -> None:
    assert fitting_level_sizes(1682, 3) == [64] * 3
    assert fitting_level_sizes(3416, 3) == [128] * 3
    assert fitting_level_sizes(12101, 3) == [256] * 3


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "tokenizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_file_is_read_by_the_code(path: Path) -> None:
    config, kind = parse_arguments(["--config", str(path)], stage="sid")
    read = vars(config) | vars(kind) | {"run_dir": str(config.run_dir)}
    for name, value in yaml.safe_load(path.read_text()).items():
        assert read[name] == value
    assert config.sources == ["text", "collaborative"]


def test_yaml_with_a_value_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    for text, message in (("level_sizes: 64", "level_sizes is 64"), ("sources: text", "sources is 'text'")):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            parse_arguments(["--config", str(file)], stage="sid")


def shell(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "run_tokenizer.sh"), *flags], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_script_runs_both_steps_from_anywhere(run_dir: Path) -> None:
    """Relative paths are the caller's; the config may come from the repository."""
    config = str(ROOT / "configs" / "tokenizer" / "demo.yaml")
    done = shell(config, "--run_dir", "run", "--level_sizes", "8", "8", cwd=run_dir.parent)
    assert done.returncode == 0, done.stderr
    assert SemanticIds.load(run_dir).level_sizes == [8, 8]


def test_the_script_passes_exit_codes_on(tmp_path: Path) -> None:
    refused = shell("--run_dir", "nowhere", cwd=tmp_path)
    assert refused.returncode == 2
    assert "sidrec prepare" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_script_explains_itself(tmp_path: Path) -> None:
    explained = shell("--help", cwd=tmp_path)
    assert explained.returncode == 0
    assert "configs/tokenizer/own.yaml" in explained.stdout
    assert "--level_sizes" in explained.stdout

"""codec/prepare_text.py: rows against a slow construction, the split, repeatability, limits and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidrec.__main__ import main
from sidrec.codec import documents as codec_documents
from sidrec.codec import prepare_text
from sidrec.codec.documents import documents_of
from sidrec.codec.prepare_text import SPLITS, TextConfig, batches, split_of
from sidrec.codec.row_file import RowFile, dtype_of
from sidrec.codec.word_pieces import read_word_pieces, token_ids
from sidrec.pipeline.errors import InputError

N_DOCUMENTS = 80
SHARES = ["--valid_share", "0.1", "--test_share", "0.1", "--vocabulary", "300", "--row_length", "16"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    texts = [f"Document {number} says {'word ' * (number % 7)}é\n" for number in range(N_DOCUMENTS)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def run(corpus: Path, run_dir: Path, *flags: str) -> dict[str, Any]:
    """Run the command; its report."""
    main(["codec", "text", "--documents", str(corpus), "--run_dir", str(run_dir), *SHARES, *flags])
    return json.loads((run_dir / "text" / "report.json").read_text())


def files(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_dir / "text").iterdir() if path.name != "log.txt"}


def test_the_rows_are_the_documents_of_their_split_one_after_the_other(corpus: Path, tmp_path: Path) -> None:
    report = run(corpus, tmp_path / "run")
    folder = tmp_path / "run" / "text"
    tokenizer = read_word_pieces(folder)
    config = TextConfig(documents=[str(corpus)], valid_share=0.1, test_share=0.1)
    assert report["row_length"] == 16
    assert report["vocabulary"] == len(tokenizer) <= 300
    for split in SPLITS:
        members = [each for each in documents_of([str(corpus)]) if split_of(each.name, config) == split]
        stream = [token for ids in token_ids(tokenizer, [each.text for each in members]) for token in [*ids, 1]]
        n_rows = -(-len(stream) // 16)
        rows = np.load(folder / f"{split}.npy")
        assert rows.dtype == np.uint16
        assert rows.shape == (n_rows, 16)
        assert rows.ravel().tolist() == stream + [0] * (n_rows * 16 - len(stream))
        n_bytes = sum(len(each.text.encode()) for each in members)
        assert report["splits"][split] == {
            "documents": len(members),
            "rows": n_rows,
            "tokens": len(stream),
            "bytes": n_bytes,
            "bytes_a_token": round(n_bytes / len(stream), 4),
        }
    assert sum(count["documents"] for count in report["splits"].values()) == N_DOCUMENTS


def test_the_same_seed_gives_the_same_bytes_and_another_one_another_split(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(corpus, tmp_path / "a")
    monkeypatch.setattr(prepare_text, "BATCH_BYTES", 50)
    run(corpus, tmp_path / "b")
    run(corpus, tmp_path / "c", "--seed", "1")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["valid.npy"] != files(tmp_path / "c")["valid.npy"]


def test_a_documents_split_depends_on_its_name_and_the_seed_alone() -> None:
    config = TextConfig(documents=["x"], valid_share=0.1, test_share=0.3)
    splits = [split_of(f"file:{number}", config) for number in range(4000)]
    shares = {split: splits.count(split) / len(splits) for split in SPLITS}
    assert shares == pytest.approx({"train": 0.6, "valid": 0.1, "test": 0.3}, abs=0.02)
    assert splits[:10] == [split_of(f"file:{number}", config) for number in range(10)]


def test_the_tokenizer_knows_train_alone(corpus: Path, tmp_path: Path) -> None:
    config = TextConfig(documents=[str(corpus)], valid_share=0.1, test_share=0.1)
    lines = corpus.read_text(encoding="utf-8").splitlines()
    odd = [json.dumps({"text": "zqxj " * 500}) for _ in lines]
    mixed = [
        line if split_of(f"corpus.jsonl:{number}", config) == "train" else odd[number - 1]
        for number, line in enumerate(lines, 1)
    ]
    run(corpus, tmp_path / "a")
    corpus.write_text("\n".join(mixed), encoding="utf-8")
    run(corpus, tmp_path / "b")
    before, after = files(tmp_path / "a"), files(tmp_path / "b")
    assert before["tokenizer.json"] == after["tokenizer.json"]
    assert before["train.npy"] == after["train.npy"]
    assert before["valid.npy"] != after["valid.npy"]


def test_no_document_is_read_beyond_most_tokens(corpus: Path, tmp_path: Path) -> None:
    whole = run(corpus, tmp_path / "whole")
    part = run(corpus, tmp_path / "part", "--most_tokens", "400")
    n_tokens = sum(count["tokens"] for count in part["splits"].values())
    assert 400 <= n_tokens < 400 + 60
    assert n_tokens < sum(count["tokens"] for count in whole["splits"].values())


def test_fineweb_is_read_up_to_most_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(text_field: str) -> Any:
        number = 0
        while True:
            number += 1
            yield codec_documents.Document(f"fineweb:{number}", f"This is text {number}.")

    monkeypatch.setattr(codec_documents, "_fineweb", endless)
    monkeypatch.setattr(prepare_text, "BATCH_BYTES", 200)
    monkeypatch.chdir(tmp_path)
    report = run(Path("fineweb"), tmp_path / "run", "--most_tokens", "1000")
    assert sum(count["tokens"] for count in report["splits"].values()) >= 1000
    manifest = json.loads((tmp_path / "run" / "text" / "manifest.json").read_text())
    assert manifest["fingerprint"]["over_network"] == "fineweb"


def test_a_finished_stage_is_left_alone_and_other_documents_are_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(corpus, tmp_path / "run")
    before = files(tmp_path / "run")
    run(corpus, tmp_path / "run")
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(InputError, match="row_length=16, not 8"):
        run(corpus, tmp_path / "run", "--row_length", "8")
    corpus.write_text(corpus.read_text() + '{"text": "one more"}\n')
    with pytest.raises(InputError, match=r"another corpus\.jsonl"):
        run(corpus, tmp_path / "run")
    assert files(tmp_path / "run") == before
    assert run(corpus, tmp_path / "run", "--overwrite", "true")["splits"]["train"]["documents"] > 0


def test_a_folders_tokenizer_is_taken(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "a")
    flags = ["--vocabulary", "none", "--tokenizer", str(tmp_path / "a" / "text")]
    run(corpus, tmp_path / "b", *flags)
    for split in SPLITS:
        assert files(tmp_path / "a")[f"{split}.npy"] == files(tmp_path / "b")[f"{split}.npy"]


def test_a_split_without_a_document_is_refused_and_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of 80 documents none belongs to valid"):
        run(corpus, tmp_path / "run", "--valid_share", "0.000001")
    assert not (tmp_path / "run" / "text").exists()
    (tmp_path / "one.txt").write_text("one document")
    config = next(
        seed for seed in range(50) if split_of("one.txt", TextConfig(["x"], seed=seed, valid_share=0.1)) != "train"
    )
    with pytest.raises(InputError, match="no document belongs to train"):
        run(tmp_path / "one.txt", tmp_path / "run", "--seed", str(config))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"documents": []}, "--documents names nothing"),
        ({"vocabulary": 257}, "at least 258"),
        ({"vocabulary": 300, "tokenizer": "smollm2-135m"}, "a tokenizer is learnt or taken"),
        ({"row_length": 1}, "row_length is 1"),
        ({"valid_share": 0.0}, "valid_share is 0.0"),
        ({"test_share": 0.5}, "test_share is 0.5"),
        ({"valid_share": float("nan")}, "valid_share is nan"),
        ({"most_tokens": 0}, "most_tokens is 0"),
        ({"documents": ["fineweb"]}, "--most_tokens"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TextConfig(**{"documents": ["x"]} | settings)


def test_an_unknown_word_of_the_codec_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no command 'tekst'; it has text"):
        main(["codec", "tekst"])
    main(["codec", "--help"])
    assert "text" in capsys.readouterr().out


@pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [4, 4], [1], [], [9]])
def test_a_row_file_is_what_numpy_would_save(tmp_path: Path, lengths: list[int]) -> None:
    stream = [token for length in lengths for token in range(1, length + 1)]
    with RowFile(tmp_path / "rows.npy", 4, np.dtype(np.uint16), pad_id=0) as rows:
        for length in lengths:
            rows.add(range(1, length + 1))
    padded = np.asarray(stream + [0] * (-len(stream) % 4), dtype=np.uint16).reshape(-1, 4)
    np.save(tmp_path / "saved.npy", padded)
    assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()
    assert (rows.n_rows, rows.n_tokens) == (len(padded), len(stream))


def test_the_type_holds_every_token() -> None:
    assert [dtype_of(size) for size in (65_536, 65_537)] == [np.uint16, np.uint32]


def test_batches_hold_every_document_in_order(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_text, "BATCH_BYTES", 100)
    lists = list(batches(documents_of([str(corpus)])))
    assert [each for batch in lists for each in batch] == list(documents_of([str(corpus)]))
    assert max(map(len, lists)) < 8

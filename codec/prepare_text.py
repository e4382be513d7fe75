"""The stage `text`: documents, split and as rows of tokens, in `text/` of a run directory.

sidrec codec text --documents corpus --run_dir outputs/codec
sidrec codec text --config configs/text/english.yaml
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidrec.codec.documents import FINEWEB, Document, documents_of, files_of, is_fineweb, size_of
from sidrec.codec.word_pieces import LEAST_VOCABULARY, load_word_pieces, token_ids, train_word_pieces
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STAGE, REPORT = "text", "report.json"
ROW_FILES = {"train": "train.npy", "valid": "valid.npy", "test": "test.npy"}
SPLITS = tuple(ROW_FILES)
NOT_DECISIVE = ("run_dir", "documents", "overwrite")  # documents count by what they hold
VOCABULARY = 4096
MOST_VOCABULARY_BYTES = 1 << 28  # of the training documents, the first so many make the tokenizer
BYTES_A_TOKEN = 4  # about, of which a tokenizer is made where --most_tokens limits the documents
BATCH_BYTES = 1 << 22  # of text that is encoded at once


@dataclass
class TextConfig:
    """Split documents into train, valid and test, learn a tokenizer from train, and write rows of tokens to text/ of a run directory."""

    documents: list[str] = field(
        metadata={
            "help": "Files (.txt and .md: one document each; .jsonl and .ndjson: one a line; .parquet: one a row), folders of them, or "
            f"{FINEWEB}, which is read over the network."
        }
    )
    run_dir: Path = field(default=Path("outputs/codec"), metadata={"help": "Run directory; its text/ is written."})
    text_field: str = field(
        default="text", metadata={"help": "Of JSON lines the field, of Parquet the column that holds the text."}
    )
    vocabulary: int | None = field(
        default=None,
        metadata={"help": f"Most tokens of the tokenizer that is learnt from train. None: {VOCABULARY}."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained model whose tokenizer is taken: smollm2-135m, a folder or a hub name. None: one is learnt."
        },
    )
    row_length: int = field(default=128, metadata={"help": "Tokens of a row."})
    valid_share: float = field(default=0.02, metadata={"help": "Share of the documents that is held out for choices."})
    test_share: float = field(
        default=0.02, metadata={"help": "Share of the documents that is held out for the last measurement."}
    )
    most_tokens: int | None = field(
        default=None, metadata={"help": "No further document is read from so many tokens on. None: all are."}
    )
    seed: int = field(default=0, metadata={"help": "With a document's name it decides which split it belongs to."})
    overwrite: bool = field(default=False, metadata={"help": "Make text/ again."})

    def __post_init__(self) -> None:
        if not self.documents:
            raise InputError(f"--documents names nothing; name files, folders or {FINEWEB}.")
        if self.vocabulary is not None and self.tokenizer is not None:
            raise InputError(
                f"vocabulary is {self.vocabulary} and tokenizer is {self.tokenizer!r}, but a tokenizer is learnt or taken; pass one of "
                "them, and `none` for the other."
            )
        if self.vocabulary is not None and self.vocabulary < LEAST_VOCABULARY:
            raise InputError(
                f"vocabulary is {self.vocabulary}; it must be at least {LEAST_VOCABULARY}: the bytes and two special tokens."
            )
        if self.row_length < 2:
            raise InputError(f"row_length is {self.row_length}; it must be at least 2.")
        if self.most_tokens is not None and self.most_tokens < 1:
            raise InputError(f"most_tokens is {self.most_tokens}; it must be at least 1.")
        for name in ("valid_share", "test_share"):
            if not 0 < getattr(self, name) < 0.5:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie between 0 and 0.5.")
        if self.most_tokens is None and any(map(is_fineweb, self.documents)):
            raise InputError(f"{FINEWEB} has billions of tokens; say in --most_tokens how many to read.")


def split_of(name: str, config: TextConfig) -> str:
    """The split of the document of that name: the same whatever other documents there are."""
    digest = hashlib.sha256(f"{config.seed} {name}".encode(errors="surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < config.valid_share:
        return "valid"
    return "test" if place < config.valid_share + config.test_share else "train"


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse_config(TextConfig, arguments, stage=STAGE)
    screen = Screen(STAGE)
    files = [file for source in config.documents if not is_fineweb(source) for _, file in files_of(Path(source))]
    own_tokenizer = Path(config.tokenizer or "") / "tokenizer.json"
    inputs = (*files, own_tokenizer) if own_tokenizer.is_file() and config.tokenizer else tuple(files)
    vocabulary = {"vocabulary": (config.vocabulary or VOCABULARY) if config.tokenizer is None else None}
    over_network = {"over_network": FINEWEB} if any(map(is_fineweb, config.documents)) else {}
    stage = Stage(
        config.run_dir, STAGE, fingerprint(config, leave_out=NOT_DECISIVE) | vocabulary | over_network, inputs
    )
    if not config.overwrite and stage.is_finished():
        screen.say(f"{STAGE}: finished already, nothing to do ({stage.folder})")
        return
    n_bytes = sum(size_of(file, config.text_field) for file in files)
    screen.begin(f"rows of {config.row_length} tokens from {', '.join(config.documents)}")
    with stage.building(config.overwrite) as folder, screen.logging_to(folder / "log.txt"):
        if config.tokenizer is None:
            tokenizer = train_word_pieces(_training_texts(config, screen, n_bytes), config.vocabulary or VOCABULARY)
        else:
            tokenizer = load_word_pieces(config.tokenizer, screen)
        tokenizer.save_pretrained(folder)
        counts = write_rows(config, tokenizer, folder, screen, n_bytes)
        report = {"vocabulary": len(tokenizer), "row_length": config.row_length, "splits": counts}
        write_json(folder / REPORT, report)
    screen.summary(STAGE, [f"{len(tokenizer):,} tokens in the vocabulary", *map(_in_words, SPLITS, counts.values())])


def write_rows(
    config: TextConfig, tokenizer: PreTrainedTokenizerFast, folder: Path, screen: Screen, n_bytes: int
) -> dict[str, dict[str, Any]]:
    """Write train.npy, valid.npy and test.npy; return by split its documents, rows, tokens, bytes and bytes a token.

    tokens: with one EOS a document, without padding. bytes: of the texts in UTF-8. n_bytes: of all documents, about. Raises InputError
    when a split has no document.
    """
    from sidrec.codec.row_file import RowFile, dtype_of  # NumPy, for which --help does not wait

    dtype, pad_id = dtype_of(len(tokenizer)), tokenizer.pad_token_id
    counts: dict[str, dict[str, Any]] = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    limited = config.most_tokens is not None
    total, unit = (config.most_tokens or 0, "tokens") if limited else (n_bytes, "bytes")
    with ExitStack() as stack:
        rows = {
            split: stack.enter_context(RowFile(folder / ROW_FILES[split], config.row_length, dtype, pad_id))
            for split in SPLITS
        }
        bar = stack.enter_context(screen.bar("writing rows", total, unit))
        n_tokens = 0
        for batch in batches(documents_of(config.documents, config.text_field)):
            for document, ids in zip(batch, token_ids(tokenizer, [each.text for each in batch]), strict=True):
                if limited and n_tokens >= total:
                    break
                split = split_of(document.name, config)
                rows[split].add([*ids, tokenizer.eos_token_id])
                n_tokens += len(ids) + 1
                counts[split]["documents"] += 1
                counts[split]["bytes"] += document.n_bytes
            read = n_tokens if limited else sum(count["bytes"] for count in counts.values())
            bar.advance(read - bar.done)
            if limited and n_tokens >= total:
                break
    for split, file in rows.items():
        if not file.n_tokens:
            raise InputError(
                f"of {sum(count['documents'] for count in counts.values()):,} documents none belongs to {split}; give more documents, a "
                "larger share or another --seed."
            )
        counts[split] |= {"rows": file.n_rows, "tokens": file.n_tokens}
        counts[split]["bytes_a_token"] = round(counts[split]["bytes"] / file.n_tokens, 4)
    return counts


def batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about BATCH_BYTES of text, in order."""
    batch: list[Document] = []
    n_bytes = 0
    for document in documents:
        batch.append(document)
        n_bytes += document.n_bytes
        if n_bytes >= BATCH_BYTES:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


def _training_texts(config: TextConfig, screen: Screen, n_bytes: int) -> Iterator[str]:
    """The texts of train that the tokenizer is learnt from, the first MOST_VOCABULARY_BYTES. Raises InputError when there are none."""
    most = min(MOST_VOCABULARY_BYTES, BYTES_A_TOKEN * (config.most_tokens or MOST_VOCABULARY_BYTES))
    documents = documents_of(config.documents, config.text_field)
    texts = (document for document in documents if split_of(document.name, config) == "train")
    n_read = 0
    first = next(texts, None)
    if first is None:
        raise InputError("no document belongs to train; give more documents, smaller shares or another --seed.")
    with screen.bar("learning the vocabulary", min(most, n_bytes or most), "bytes") as bar:
        for document in chain([first], texts):
            yield document.text
            n_read += document.n_bytes
            bar.advance(document.n_bytes)
            if n_read >= most:
                return


def _in_words(split: str, count: dict[str, Any]) -> str:
    return (
        f"{ROW_FILES[split]}: {count['documents']:,} documents, {count['rows']:,} rows, {count['tokens']:,} tokens of "
        f"{count['bytes_a_token']:.2f} bytes"
    )


if __name__ == "__main__":
    run_as_command(main)

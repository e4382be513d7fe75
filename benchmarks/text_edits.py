"""Whether an edit that keeps the meaning of an item's text keeps the item's codes.

python -m benchmarks.text_edits --run_dir outputs/demo

A quantizer is learnt on the text vectors of a prepared run's items, by the tokenizer's own text encoder. Then every text is edited, in one
way after another, and coded again by what was learnt. Of the items whose text the edit changes: the mean cosine of the vectors before and
after, and the share that keeps the first code, and all codes (the nearest ones, before equal IDs are told apart). The last row is what
chance gives: each item with the text of the next one. The synonyms and stop words are the short lists in this file, so the row of
synonyms says little where few texts hold one of them. The last line is one JSON object.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.finished_rows import Row, markdown
from benchmarks.harness import announce, check_at_least, plain_console, print_figures
from benchmarks.quantizers import QUANTIZERS, check_names, read_settings
from sidrec.data.dataset import Dataset
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors
from sidrec.tokenizer.embeddings.text import TfidfSvd, encode_texts
from sidrec.tokenizer.quantizers.level_sizes import check_level_sizes, default_level_sizes

HEADER = "edit|items changed|cosine|first code stays|all codes stay"
STOP_WORDS = {
    "a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "that", "the", "this", "to", "with",
}  # fmt: skip
PAIRS = (
    "movie film", "kids children", "big large", "small little", "fast quick", "gift present", "sofa couch", "color colour",
    "gray grey", "ounce oz", "perfume fragrance", "women ladies", "begin start", "end finish", "war battle", "city town",
    "road street", "woman lady", "ship vessel", "picture image", "ill sick", "rock stone",
)  # fmt: skip
SYNONYMS = {word: other for pair in PAIRS for word, other in (pair.split(), pair.split()[::-1])}
WORD = re.compile(r"\w+")


@dataclass
class TextEditsConfig:
    """Edit every item's text without changing its meaning, and count the items that keep their codes."""

    run_dir: Path = field(
        default=Path("outputs/demo"), metadata={"help": "Folder of a prepared run; reads data/ in it."}
    )
    text_encoder: str | None = field(
        default=None, metadata={"help": "sentence-transformers model, by name or folder; default: TF-IDF and SVD."}
    )
    text_dim: int = field(default=64, metadata={"help": "Numbers per text vector made by TF-IDF and SVD."})
    batch_size: int = field(default=64, metadata={"help": "Texts per forward pass of the text encoder."})
    quantizer: str = field(default="rqkmeans", metadata={"help": f"One of {' '.join(QUANTIZERS)}."})
    level_sizes: list[int] = field(
        default_factory=list, metadata={"help": "Codes per level; default: as the tokenizer chooses them."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the text vectors and of the quantizer."})

    def __post_init__(self) -> None:
        check_names([self.quantizer])
        check_at_least(1, text_dim=self.text_dim, batch_size=self.batch_size)


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(TextEditsConfig, arguments), plain_console()
    announce(console, "text_edits", arguments)
    texts = Dataset.load(config.run_dir).items["text"].fill_null("").to_list()
    asked = config.level_sizes or default_level_sizes(len(texts))
    check_level_sizes(asked, len(texts), unique=False)
    kind, level_sizes = read_settings(config.quantizer, asked)
    encode = encoder_of(config, texts)
    vectors = ItemVectors([encode(texts)], [1.0])
    kind.check(vectors, level_sizes)
    quantizer = kind.fit(vectors, level_sizes, config.seed)
    codes = quantizer.encode(vectors)
    rows = []
    for name, edit in EDITS.items():
        edited = [edit(text) for text in texts]
        rows.append({"edit": name} | measure(texts, edited, vectors, codes, encode, quantizer.encode))
    rows.append(
        {"edit": "the next item's text"}
        | measure(texts, [*texts[1:], texts[0]], vectors, codes, encode, quantizer.encode)
    )
    sizes = " x ".join(map(str, level_sizes))
    console.print(f"\n## {len(texts):,} items, {sizes} codes by {config.quantizer}\n")
    console.print(markdown(HEADER.split("|"), [in_words(row) for row in rows]))
    print_figures({"items": len(texts), "level_sizes": level_sizes, "rows": rows})


def encoder_of(config: TextEditsConfig, texts: list[str]) -> Callable[[list[str]], np.ndarray]:
    """What turns texts [n] into rows of length 1, [n, D]: TF-IDF and SVD fitted to `texts`, or the named model."""
    if config.text_encoder is None:
        return TfidfSvd.fit(texts, config.text_dim, config.seed)[0].encode
    name = config.text_encoder
    return lambda others: encode_texts(others, name, config.batch_size)


def measure(
    texts: list[str],
    edited: list[str],
    vectors: ItemVectors,
    codes: np.ndarray,
    encode: Callable[[list[str]], np.ndarray],
    code: Callable[[ItemVectors], np.ndarray],
) -> Row:
    """The figures of one edit, of the items whose text it changes; None where there are none. codes: [N, L], of the texts before."""
    changed = np.flatnonzero([text != other for text, other in zip(texts, edited, strict=True)])
    if not len(changed):
        return {"changed": 0, "cosine": None, "first_code": None, "all_codes": None}
    after = ItemVectors([encode(edited)], [1.0])
    same = (code(after) == codes)[changed]
    before, new = vectors[changed], after[changed]
    cosines = (before * new).sum(axis=1) / (np.linalg.norm(before, axis=1) * np.linalg.norm(new, axis=1))
    return {
        "changed": len(changed),
        "cosine": float(cosines.mean()),
        "first_code": float(same[:, 0].mean()),
        "all_codes": float(same.all(axis=1).mean()),
    }


def in_words(row: Row) -> list[str]:
    """A row of the Markdown table, under HEADER."""
    if not row["changed"]:
        return [row["edit"], "0", "–", "–", "–"]
    shares = [f"{row[name]:.1%}" for name in ("first_code", "all_codes")]
    return [row["edit"], f"{row['changed']:,}", f"{row['cosine']:.3f}", *shares]


def without_stop_words(text: str) -> str:
    """Every word but those of STOP_WORDS."""
    return " ".join(word for word in text.split() if word.lower().strip(".,;:!?()") not in STOP_WORDS)


def with_synonyms(text: str) -> str:
    """Every word that has a partner in PAIRS replaced by it, in lower case."""
    return WORD.sub(lambda match: SYNONYMS.get(match[0].lower(), match[0]), text)


def halves_swapped(text: str) -> str:
    """The second half of the words first: two neighbours are parted, all others stay together."""
    words = text.split()
    return " ".join(words[len(words) // 2 :] + words[: len(words) // 2])


EDITS: dict[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "no punctuation": lambda text: " ".join(WORD.findall(text)),
    "halves swapped": halves_swapped,
    "words reversed": lambda text: " ".join(text.split()[::-1]),
    "no stop words": without_stop_words,
    "synonyms": with_synonyms,
}


if __name__ == "__main__":
    run_as_command(main)

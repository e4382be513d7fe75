"""Item text → vectors: TF-IDF and SVD (no download, seconds), or any sentence-transformers encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256
from sidrec.pipeline.packaged_models import packaged_model, packaged_path
from sidrec.pipeline.screen import Bar, Screen
from sidrec.tokenizer.embeddings.truncated_svd import truncated_svd
from sidrec.tokenizer.embeddings.unit_rows import unit_rows

WORDS: dict[str, Any] = {"ngram_range": (1, 2), "strip_accents": "unicode", "dtype": np.float64}
BATCHES_TOGETHER = 16  # of texts for a sentence-transformers model, between two drawings of the bar


def tfidf_svd(texts: list[str], dim: int, seed: int, screen: Screen | None = None) -> np.ndarray:
    """The vectors of `TfidfSvd.fit`."""
    return TfidfSvd.fit(texts, dim, seed, screen)[1]


@dataclass(frozen=True)
class TfidfSvd:
    """Latent semantic analysis, fitted to a catalogue's texts: words and word pairs, weighted by TF-IDF, projected by the SVD.

    terms: T words and word pairs, one for each of idf, float64 [T], and projection, float64 [T, D]. seed: see `unit_rows`. longest: the
    length of the longest of the catalogue's rows before they are scaled.
    """

    terms: list[str]
    idf: np.ndarray
    projection: np.ndarray
    seed: int
    longest: float

    @classmethod
    def fit(cls, texts: list[str], dim: int, seed: int, screen: Screen | None = None) -> tuple[TfidfSvd, np.ndarray]:
        """The encoder, and the vectors of `texts`, float32 [N, D] with rows of length 1.

        D is `dim`, or less where the texts allow less (N, the number of terms, or the rank of their matrix). Terms that occur in one text
        only are left out: they make no two items alike. A text without any remaining term gets a vector of length 1e-4 in a direction
        drawn from `seed` (see `unit_rows`). Words are what Unicode separates by spaces and signs; for Chinese, Japanese or Thai use a text
        encoder. Raises InputError when no term occurs in two texts.
        """
        assert dim >= 1, f"dim must be at least 1, got {dim}"
        counter, weigher, matrix = _tfidf(texts, screen or Screen("", quiet=True))
        _, _, projection = truncated_svd(matrix, dim, seed, screen)
        projection = np.ascontiguousarray(projection)
        rows = matrix @ projection
        longest = float(np.linalg.norm(rows, axis=1).max())
        encoder = cls(counter.get_feature_names_out().tolist(), weigher.idf_, projection, seed, longest)
        return encoder, unit_rows(rows, seed, longest)

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 [n, D]: of the texts that it was fitted to, the vectors of `fit`, bit for bit; of others, rows as those are made."""
        weigher = TfidfTransformer(sublinear_tf=True)
        weigher.idf_ = self.idf
        counts = _in_order(CountVectorizer(**WORDS, vocabulary=self.terms).transform(texts))
        return unit_rows(weigher.transform(counts) @ self.projection, self.seed, self.longest)

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings and arrays, from which `restored` makes it again."""
        joined = np.frombuffer("\n".join(self.terms).encode(), dtype=np.uint8)
        arrays = {"terms": joined, "idf": self.idf, "projection": self.projection}
        return {"seed": self.seed, "longest": self.longest}, arrays

    @classmethod
    def restored(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> TfidfSvd:
        terms = arrays["terms"].tobytes().decode().split("\n")
        assert len(terms) == len(arrays["idf"]) == len(arrays["projection"])
        return cls(terms, arrays["idf"], arrays["projection"], settings["seed"], settings["longest"])


def _tfidf(texts: list[str], screen: Screen) -> tuple[CountVectorizer, TfidfTransformer, sparse.csr_array]:
    """What counts words and what weighs them, fitted to the texts, and their matrix [N, terms]."""
    counter, weigher = CountVectorizer(**WORDS, min_df=2), TfidfTransformer(sublinear_tf=True)
    try:
        with screen.bar("words of texts", len(texts), "texts") as bar:
            counts = _in_order(counter.fit_transform(counted(texts, bar)))
    except ValueError as error:  # sklearn's "empty vocabulary" and "no terms remain"
        raise InputError(
            f"the column `text` of items.parquet has no word that occurs in two of the {len(texts)} items ({error}); "
            "give the items text, or leave the source out with --sources collaborative --weights 1."
        ) from error
    return counter, weigher, weigher.fit_transform(counts)


def _in_order(counts: sparse.csr_array) -> sparse.csr_array:
    """[n, terms], each row in the order of the terms: so its length is summed in one order, and has the same bits, in every matrix."""
    counts.sort_indices()
    return counts


def counted(texts: list[str], bar: Bar) -> Iterator[str]:
    """The texts, each counted by the bar when it has been taken."""
    for text in texts:
        yield text
        bar.advance()


def encode_texts(texts: list[str], name_or_folder: str, batch_size: int, screen: Screen | None = None) -> np.ndarray:
    """Embed texts with a sentence-transformers model (a Hugging Face name, or a folder for use without a network), or with `minilm`.

    Returns float32 [N, D] with rows of length 1; D is the model's own. Raises InputError when the package is not
    installed or the model cannot be loaded.
    """
    return _encoded(text_encoder(name_or_folder), texts, batch_size, screen)


def _encoded(encoder: Any, texts: list[str], batch_size: int, screen: Screen | None) -> np.ndarray:
    longest_first = np.argsort(
        [-len(text) for text in texts], kind="stable"
    )  # as the encoder sorts them: little padding
    parts = []
    with (screen or Screen("", quiet=True)).bar("texts", len(texts), "texts") as bar:
        for start in range(0, len(texts), BATCHES_TOGETHER * batch_size):
            some = [texts[row] for row in longest_first[start : start + BATCHES_TOGETHER * batch_size]]
            parts.append(encoder.encode(some, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True))
            bar.advance(len(some))
    vectors = np.concatenate(parts).astype(np.float32)[np.argsort(longest_first)]
    assert vectors.ndim == 2, f"expected [N, D], got {vectors.shape}"
    assert len(vectors) == len(texts)
    return unit_rows(vectors, seed=0)


@dataclass(frozen=True)
class TextModel:
    """A pretrained encoder by its name. pin: the revision of a model of the hub, or the sha256 of a folder's files; None where the model
    does not say. batch_size: texts per forward pass, which decides last bits."""

    name: str
    pin: str | None
    batch_size: int

    @classmethod
    def fit(cls, texts: list[str], name: str, batch_size: int, screen: Screen | None) -> tuple[TextModel, np.ndarray]:
        """The encoder, and the vectors of `texts`, float32 [N, D]. Raises InputError as `encode_texts` does."""
        encoder = text_encoder(name)
        return cls(name, _pin(name, encoder), batch_size), _encoded(encoder, texts, batch_size, screen)

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 [n, D]. Raises InputError where the model is not there, or is another one than then."""
        is_files = _folder(self.name) is not None
        encoder = text_encoder(self.name, None if is_files else self.pin)
        if self.pin is not None and _pin(self.name, encoder) != self.pin:
            raise InputError(
                f"the text encoder {self.name} is another one than the vectors were made with (then {self.pin}); put that one in its place."
            )
        return _encoded(encoder, texts, self.batch_size, None)

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings and arrays, from which `restored` makes it again."""
        return {"name": self.name, "pin": self.pin, "batch_size": self.batch_size}, {}

    @classmethod
    def restored(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> TextModel:
        return cls(**settings)


def _folder(name: str) -> Path | None:
    """Where the files of an encoder lie; None for one of the hub."""
    if packaged_model(name) is not None:
        return packaged_path(name, "text_encoder")
    return Path(name) if Path(name).is_dir() else None


def _pin(name: str, encoder: Any) -> str | None:
    folder = _folder(name)
    if folder is not None:
        return sha256(folder)
    modules = encoder.modules() if hasattr(encoder, "modules") else ()
    commits = (getattr(getattr(module, "config", None), "_commit_hash", None) for module in modules)
    return next((commit for commit in commits if commit), None)


def text_encoder(name_or_folder: str, revision: str | None = None) -> Any:
    """What encodes texts: a sentence-transformers model, or the packaged `minilm`, which needs transformers alone."""
    if packaged_model(name_or_folder) is not None:
        if name_or_folder != "minilm":
            raise InputError(f"--text_encoder {name_or_folder} is a model that writes, not an encoder; give minilm.")
        return MiniLm(packaged_path(name_or_folder, "text_encoder"))
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            f"--text_encoder {name_or_folder} needs sentence-transformers, which is not installed: "
            'run `pip install "sidrec[text]"`, or leave --text_encoder out to use TF-IDF.'
        ) from error
    try:
        return SentenceTransformer(name_or_folder, **({"revision": revision} if revision else {}))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise InputError(
            f"--text_encoder {name_or_folder} cannot be loaded ({reason}); give the name of a "
            "sentence-transformers model that this machine can download, or a folder that holds one."
        ) from error


class MiniLm:
    """all-MiniLM-L6-v2 as sentence-transformers runs it: the mean of the last states of at most 256 tokens, scaled to length 1."""

    longest = 256

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer, self.model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def encode(self, texts: list[str], batch_size: int, **_: object) -> np.ndarray:
        """float32 [N, 384], in the order of `texts`."""
        import torch

        parts = []
        for start in range(0, len(texts), batch_size):
            batch = self.tokenizer(
                texts[start : start + batch_size],
                padding=True,
                truncation=True,
                max_length=self.longest,
                return_tensors="pt",
            )
            with torch.inference_mode():
                states = self.model(**batch).last_hidden_state  # [B, T, 384]
            words = batch["attention_mask"][..., None]
            parts.append(torch.nn.functional.normalize((states * words).sum(1) / words.sum(1), dim=1).numpy())
        return np.concatenate(parts)

"""Item text → vectors: TF-IDF and SVD (no download, seconds), or any sentence-transformers encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.packaged_models import packaged_model, packaged_path
from sidrec.pipeline.screen import Bar, Screen
from sidrec.tokenizer.embeddings.truncated_svd import truncated_svd
from sidrec.tokenizer.embeddings.unit_rows import unit_rows

BATCHES_TOGETHER = 16  # of texts for a sentence-transformers model, between two drawings of the bar


def tfidf_svd(texts: list[str], dim: int, seed: int, screen: Screen | None = None) -> np.ndarray:
    """Embed texts by latent semantic analysis: SVD of the TF-IDF matrix of words and word pairs.

    Returns float32 [N, D] with rows of length 1. D is `dim`, or less where the texts allow less (N, the number of
    terms, or the rank of their matrix). Terms that occur in one text only are left out: they make no two items alike.
    A text without any remaining term gets a vector of length 1e-4 in a direction drawn from `seed` (see `unit_rows`).
    Words are what Unicode separates by spaces and signs; for Chinese, Japanese or Thai use a text encoder. Raises
    InputError when no term occurs in two texts.
    """
    assert dim >= 1, f"dim must be at least 1, got {dim}"
    _, matrix = _tfidf(texts, screen or Screen("", quiet=True))
    left, singular = truncated_svd(matrix, dim, seed, screen)
    return unit_rows(left * singular, seed)


def fitted_tfidf_svd(texts: list[str], dim: int, seed: int) -> Callable[[list[str]], np.ndarray]:
    """What embeds any texts as `tfidf_svd` embeds `texts`: [n] texts → float32 [n, D], their terms weighted and projected as those are."""
    vectorizer, matrix = _tfidf(texts, Screen("", quiet=True))
    left, singular = truncated_svd(matrix, dim, seed)
    projection = matrix.T @ left / singular  # V, [terms, D]
    return lambda others: unit_rows(vectorizer.transform(others) @ projection, seed)


def _tfidf(texts: list[str], screen: Screen) -> tuple[TfidfVectorizer, sparse.csr_array]:
    """The vectorizer fitted to the texts, and their matrix [N, terms]."""
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode", min_df=2, dtype=np.float64
    )
    try:
        with screen.bar("words of texts", len(texts), "texts") as bar:
            matrix = vectorizer.fit_transform(counted(texts, bar))  # sparse [N, terms]
    except ValueError as error:  # sklearn's "empty vocabulary" and "no terms remain"
        raise InputError(
            f"the column `text` of items.parquet has no word that occurs in two of the {len(texts)} items ({error}); "
            "give the items text, or leave the source out with --sources collaborative --weights 1."
        ) from error
    return vectorizer, matrix


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
    encoder = text_encoder(name_or_folder)
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


def text_encoder(name_or_folder: str) -> Any:
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
        return SentenceTransformer(name_or_folder)
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

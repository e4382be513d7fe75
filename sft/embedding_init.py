"""Where the rows of SID tokens start from: four named methods, in closed form, of the codebooks, the items' texts and the old rows.

    codebook       the code vectors, lifted to the model's width: codes that lie near each other have rows that do
    text           of the items with the code, the mean row of the words of their texts, less what all codes of the level have in common;
                   of a code without such items, its code vector as in `codebook`
    codebook+text  around the mean of the old rows, a mixture of the two, with more of the text the later the level
    mean           the mean of the old rows for every token, and a tiny draw: what `resize_token_embeddings` does

Rows are scaled to the norms of the old ones. No row of an old token is touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from rich import get_console
from rich.progress import track
from scipy.sparse import csr_array
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sidrec.pipeline.errors import InputError
from sidrec.sft.settings import EmbeddingInit
from sidrec.tokenizer.semantic_ids import SemanticIds

DRAW_VARIANCE = 1e-9  # of `mean`, in units of the old rows' covariance; transformers' own figure
UNUSED_NORM = 1e-2  # of `text`, for codes without items on a level without code vectors, in units of the others' norm
TEXTS_AT_ONCE = 4096


def usable_init(embedding_init: EmbeddingInit, from_scratch: bool) -> EmbeddingInit:
    """The method that is used: rows of a model made from scratch know no words, so `codebook+text` is `codebook` there."""
    return "codebook" if from_scratch and embedding_init == "codebook+text" else embedding_init


def initial_rows(
    old: Tensor, sids: SemanticIds, word_shares: csr_array | None, embedding_init: EmbeddingInit, seed: int
) -> list[Tensor]:
    """The first rows of every level's codes: L tensors, float32 [K_l, H].

    old: [V, H], rows of the tokens before SID tokens, of the embedding or of an untied head. word_shares: [N, V] from
    `word_shares`, for the methods that read texts.
    """
    assert old.ndim == 2
    old = old.detach().float()
    mean, norm = old.mean(dim=0), old.norm(dim=1).median()
    if embedding_init == "mean":
        return mean_rows(old, sids.level_sizes, seed)
    around = (old - mean).norm(dim=1).median()
    rows = []
    for level, codebook in enumerate(sids.codebooks):
        geometry = codebook_rows(codebook, old.shape[1], seed + level)
        if embedding_init == "codebook":
            rows.append(norm * geometry)
            continue
        assert word_shares is not None
        assert word_shares.shape == (sids.n_items, len(old)), f"shares {word_shares.shape} for old rows {old.shape}"
        text, used = text_rows(old, word_shares, sids.codes[:, level], len(codebook))
        if embedding_init == "text":
            rest = geometry if has_geometry(codebook) else UNUSED_NORM * geometry  # about the mean, which is 0
            rows.append(norm * torch.where(used[:, None], text, rest))
        else:
            weight = geometry_weight(level) if has_geometry(codebook) else 1.0
            mixed = torch.where(used[:, None], (1 - weight) * text + weight * geometry, geometry)
            rows.append(mean + around * unit_mean_norm(mixed))
    return rows


def geometry_weight(level: int) -> float:
    """Share of the codebook in `codebook+text`: a residual's vector means less and less by itself.

    Measured with benchmarks/row_starts.py: with 0.8 to 0.9 of the codebook the loss falls faster than with a half.
    """
    return 0.9 ** (level + 1)


def has_geometry(codebook: np.ndarray) -> bool:
    """Whether the code vectors [K, D] differ; a dedup token's are all the same."""
    return bool((codebook != codebook[0]).any())


def unit_mean_norm(rows: Tensor) -> Tensor:
    """`rows` [K, H] over their mean norm."""
    return rows / rows.norm(dim=1).mean().clamp(min=1e-12)


def codebook_rows(codebook: np.ndarray, hidden_size: int, seed: int) -> Tensor:
    """float32 [K, hidden_size]: the codebook's geometry in the model's space, mean row norm 1.

    The centred code vectors [K, D] are projected on their min(D, hidden_size) principal directions and lifted by a random
    orthonormal map, one a level, so that distances between codes are kept and levels lie in unrelated directions. Not whitened: all
    codes of a level would be equally far apart where there are fewer of them than dimensions. Codes whose vectors are all the same
    (a dedup token's) have no geometry: they get random directions.
    """
    assert codebook.ndim == 2
    # in float64, rounded at the end: the last bits of an SVD depend on where its input lies in memory
    vectors = torch.tensor(codebook, dtype=torch.float64)
    centred = vectors - vectors.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    projected = centred @ directions[:hidden_size].T  # [K, r]
    generator = torch.Generator().manual_seed(seed)
    lift, _ = torch.linalg.qr(
        torch.randn(hidden_size, projected.shape[1], generator=generator).double()
    )  # [hidden_size, r]
    rows = (projected @ lift.T).float()
    if not has_geometry(codebook):
        rows = torch.randn(len(codebook), hidden_size, generator=generator)
    return unit_mean_norm(rows)


def text_rows(old: Tensor, word_shares: csr_array, codes: np.ndarray, level_size: int) -> tuple[Tensor, Tensor]:
    """float32 [K, H], mean norm 1 over codes in use, and bool [K], which codes are: the mean words of each code's items.

    old: [V, H]. word_shares: [N, V]. codes: int [N], the items' codes at this level. An item's vector is the mean of the rows of its
    text's tokens, a code's the mean of its items', less the mean of all codes in use. Items without a text do not count, and a
    code that is left with none is not in use: its row is zero.
    """
    assert codes.shape == (word_shares.shape[0],)
    items = np.flatnonzero(np.diff(word_shares.indptr))
    counts = np.bincount(codes[items], minlength=level_size)
    used = counts > 0
    shares = csr_array((1 / counts[codes[items]], (codes[items], items)), shape=(level_size, len(codes))) @ word_shares
    words = np.unique(shares.indices)  # of a large vocabulary only what the texts use goes to float64
    # sums of sparse rows, term by term: the same bits wherever the arrays lie
    means = shares[:, words] @ old[torch.from_numpy(words)].double().numpy()  # [K, H]
    centred = np.where(used[:, None], means - means[used].mean(axis=0) if used.any() else 0.0, 0.0)
    scale = np.linalg.norm(centred[used], axis=1).mean() if used.any() else 0.0
    return torch.tensor(centred / max(scale, 1e-12), dtype=torch.float32), torch.tensor(used)


def mean_rows(old: Tensor, level_sizes: Sequence[int], seed: int) -> list[Tensor]:
    """float32 [K_l, H] a level: draws from N(mean, DRAW_VARIANCE · covariance) of the old rows [V, H]."""
    rows = old.double()
    mean = rows.mean(dim=0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    values, directions = torch.linalg.eigh(covariance)
    root = directions * values.clamp(min=0).sqrt()  # [H, H], root · rootᵀ is the covariance
    draws = torch.randn(sum(level_sizes), old.shape[1], generator=torch.Generator().manual_seed(seed)).double()
    drawn = mean + DRAW_VARIANCE**0.5 * draws @ root.T
    return list(drawn.float().split(list(level_sizes)))


def word_shares(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> csr_array:
    """float64 [N, V]: the share of every token in each item's text; a row of an empty text is zero. V: tokens of `tokenizer`.

    Raises InputError when no text has a token.
    """
    columns, lengths = [], []
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    for start in track(starts, "words of items", transient=True, disable=not get_console().is_terminal):
        batch = tokenizer(list(texts[start : start + TEXTS_AT_ONCE]), add_special_tokens=False)["input_ids"]
        lengths += [len(tokens) for tokens in batch]
        columns += [np.array(tokens, dtype=np.int32) for tokens in batch]
    if not sum(lengths):
        raise InputError(
            "no item has a text, so its words cannot start the SID tokens' rows; pass --embedding_init codebook."
        )
    shares = np.repeat(1 / np.maximum(lengths, 1), lengths)
    counted = csr_array((shares, np.concatenate(columns), np.cumsum([0, *lengths])), shape=(len(texts), len(tokenizer)))
    counted.sum_duplicates()
    return counted

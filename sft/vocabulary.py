"""SID tokens in a language model's vocabulary, and where their embedding rows start from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.stage import InputError
from decoding.policy import SidVocabulary
from tokenizer.semantic_ids import SemanticIds

START_TOKEN = "<history>"
ROWS_MULTIPLE = 64


def add_sid_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sids: SemanticIds, seed: int
) -> SidVocabulary:
    """Add `<history>` and every SID token to `tokenizer`, give `model` rows for them, and start the rows from the codebooks.

    The embedding (and an untied head) grows to a multiple of 64 rows. Raises InputError when a token exists already.
    """
    tokens = [START_TOKEN, *sids.tokens()]
    taken = sorted(set(tokens) & set(tokenizer.get_vocab()))
    if taken:
        raise InputError(
            f"the model's tokenizer already has the token {taken[0]}; start from a model without SID tokens."
        )
    old_rows = len(tokenizer)
    tokenizer.add_tokens(tokens, special_tokens=True)
    start = tokenizer.convert_tokens_to_ids(START_TOKEN)
    assert tokenizer.convert_tokens_to_ids(tokens) == list(range(start, start + len(tokens))), (
        "tokens are not consecutive"
    )
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=ROWS_MULTIPLE, mean_resizing=False)

    offsets = np.cumsum([1, *sids.level_sizes[:-1]])
    vocabulary = SidVocabulary(start, tuple(int(start + offset) for offset in offsets), tuple(sids.level_sizes))
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in matrices.values():
        with torch.no_grad():
            norm = weight[:old_rows].norm(dim=1).median()
            for level, codebook in enumerate(sids.codebooks):
                first = vocabulary.first_tokens[level]
                rows = codebook_rows(codebook, weight.shape[1], seed + level)
                weight[first : first + len(rows)] = norm * rows.to(weight.dtype)
    return vocabulary


def codebook_rows(codebook: np.ndarray, hidden_size: int, seed: int) -> Tensor:
    """float32 [K, hidden_size]: the codebook's geometry in the model's space, mean row norm 1.

    The centred code vectors [K, D] are projected on their min(D, hidden_size) principal directions and lifted by a random
    orthonormal map, one a level, so that distances between codes are kept and levels lie in unrelated directions. Codes whose vectors are
    all the same (a dedup token's) have no geometry: they get random directions.
    """
    assert codebook.ndim == 2
    # in float64, rounded at the end: the last bits of an SVD depend on where its input lies in memory
    vectors = torch.tensor(codebook, dtype=torch.float64)
    centred = vectors - vectors.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    kept = centred @ directions[:hidden_size].T  # [K, r]
    generator = torch.Generator().manual_seed(seed)
    lift, _ = torch.linalg.qr(torch.randn(hidden_size, kept.shape[1], generator=generator).double())  # [hidden_size, r]
    rows = (kept @ lift.T).float()
    if not centred.any():
        rows = torch.randn(len(codebook), hidden_size, generator=generator)
    return rows / rows.norm(dim=1).mean().clamp(min=1e-12)

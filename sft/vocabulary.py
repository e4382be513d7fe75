"""SID tokens in a language model's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.renderer import CONTROL_TOKENS
from sidrec.pipeline.errors import InputError
from sidrec.sft.embedding_init import initial_rows, word_shares
from sidrec.sft.settings import EmbeddingInit
from sidrec.tokenizer.semantic_ids import SemanticIds

START_TOKEN = CONTROL_TOKENS[0]
ROWS_MULTIPLE = 64


def add_sid_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sids: SemanticIds,
    texts: Sequence[str],
    embedding_init: EmbeddingInit,
    seed: int,
) -> SidVocabulary:
    """Add the control tokens and every SID token to `tokenizer`, and give `model` rows for them, which start by `embedding_init`.

    texts: of item i at index i. The embedding (and an untied head, from its own old rows) grows to a multiple of 64 rows. Raises
    InputError when a token exists already.
    """
    assert len(texts) == sids.n_items
    tokens = [*CONTROL_TOKENS, *sids.tokens()]
    present = sorted(set(tokens) & set(tokenizer.get_vocab()))
    if present:
        raise InputError(
            f"the model's tokenizer already has the token {present[0]}; start from a model without SID tokens, or from a finished sft "
            "folder of these very SIDs."
        )
    old_rows = len(tokenizer)
    shares = word_shares(texts, tokenizer) if "text" in embedding_init else None
    # ordinary ones: special tokens are dropped by every server's default decoding
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    start = tokenizer.convert_tokens_to_ids(START_TOKEN)
    assert tokenizer.convert_tokens_to_ids(tokens) == list(range(start, start + len(tokens))), (
        "tokens are not consecutive"
    )
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=ROWS_MULTIPLE, mean_resizing=False)

    offsets = np.cumsum([len(CONTROL_TOKENS), *sids.level_sizes[:-1]])
    vocabulary = SidVocabulary(start, tuple(int(start + offset) for offset in offsets), tuple(sids.level_sizes))
    modules = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    matrices = {id(module.weight): module.weight for module in modules}
    for weight in matrices.values():
        with torch.no_grad():
            for first, rows in zip(
                vocabulary.first_tokens,
                initial_rows(weight[:old_rows], sids, shares, embedding_init, seed),
                strict=True,
            ):
                weight[first : first + len(rows)] = rows.to(weight.dtype)
    return vocabulary

"""The configuration of an RQ-Transformer over semantic IDs."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class RqTransformerConfig(PreTrainedConfig):
    """What makes the model's shape: the spatial transformer's sizes, the depth head, and where the SID tokens lie in its vocabulary.

    depth_head: one of DEPTH_HEADS. joint_levels: how many of the first codes are of one softmax; None: by the catalogue's size.
    exact_children: how many children of a joint node are scored one by one (`joint_nodes.py`); models of before have none.
    start_token, first_tokens, level_sizes: as of `SidVocabulary`. n_nodes: nodes of the training catalogue's trie at depths 1 … L; the
    last is the number of items. own_levels: which levels' nodes have rows of their own. Empty until `add_catalogue` has been called.

    spatial: the configuration of a pretrained decoder that is the spatial transformer, its `model_type` among it; None: the project's own.
    opening: token ids, of the rows that such a decoder sees before the items.
    """

    model_type = "rq_transformer"

    vocab_size: int = 258
    hidden_size: int = 128
    num_hidden_layers: int = 1
    num_attention_heads: int = 2
    intermediate_size: int = 256
    dropout: float = 0.5
    smoothing: bool = True
    depth_head: str = "marginal"
    joint_levels: int | None = None
    exact_children: int = 0
    item_loss_weight: float = 1.0
    start_token: int = 258
    first_tokens: list[int] | None = None
    level_sizes: list[int] | None = None
    n_nodes: list[int] | None = None
    own_levels: list[int] | None = None
    spatial: dict[str, Any] | None = None
    opening: list[int] | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1

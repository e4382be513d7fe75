"""Where the rows of an RQ-Transformer's nodes start from: the residual centroids of the items below them.

An item's vector is what it occurs with in the training log (`tokenizer/embeddings/collaborative.py`), turned to the model's width by one
random map for all levels. A node's row is the mean of its items' vectors less the rows above it, so that the rows of an item's path sum
to the item's vector; a code's shared row is the mean over all items with the code, as a codebook's vector is, and the node's own row what
is left. So an untrained model already scores items by what they occur with. A code that no item has starts where its code vector lies among
those of the others, for the items that may come to have it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM
from sidrec.decoding.trie import SidTrie
from sidrec.sft.embedding_init import has_geometry
from sidrec.tokenizer.embeddings.collaborative import ppmi_svd
from sidrec.tokenizer.semantic_ids import SemanticIds

VECTOR_DIM, WINDOW = 64, 5
OWN_ROWS_BYTES = 512 << 20  # of all own rows together; the levels that would need more have none


def add_catalogue(
    model: RqTransformerForCausalLM,
    vocabulary: SidVocabulary,
    sids: SemanticIds,
    sequences: list[np.ndarray],
    seed: int,
    *,
    own_rows: bool = True,
    std: float | None = None,
) -> None:
    """Give `model`, whose vocabulary holds the SID tokens, the catalogue's nodes.

    sequences: training items of every user. own_rows: whether nodes have rows beside their codes'. std: of the entries of a level's rows;
    None: the configuration's.
    """
    trie = SidTrie(torch.from_numpy(sids.codes), sids.level_sizes)
    own_levels = levels_with_own_rows(trie, model.config.hidden_size) if own_rows else []
    model.add_catalogue(trie, vocabulary.start_token, vocabulary.first_tokens, own_levels)
    counts = torch.from_numpy(np.bincount(np.concatenate(sequences), minlength=sids.n_items))
    model.popularity.copy_(counts / counts.sum())
    vectors = torch.from_numpy(ppmi_svd(sequences, sids.n_items, VECTOR_DIM, seed, window=WINDOW))
    generator = torch.Generator().manual_seed(seed)
    lifted = vectors @ torch.randn(vectors.shape[1], model.config.hidden_size, generator=generator)
    std = model.config.initializer_range if std is None else std
    with torch.no_grad():
        for level, (shared, rest) in enumerate(residual_rows(lifted, trie, std)):
            first, used = vocabulary.first_tokens[level], trie.code[level][:].unique()
            rows = with_unused_rows(shared, used, sids.codebooks[level])
            model.embed_tokens.weight[first : first + len(shared)] = rows
            if level in own_levels:
                model.nodes.own[str(level)].copy_(rest)


def levels_with_own_rows(trie: SidTrie, hidden_size: int) -> list[int]:
    """The levels on which several nodes share a code, the upper ones first, as many as OWN_ROWS_BYTES hold.

    Where every node has a code to itself, the code's row is the node's own already.
    """
    levels, n_bytes = [], 0
    for level, n_nodes in enumerate(trie.n_nodes[1:]):
        n_bytes += n_nodes * hidden_size * 4
        if len(trie.code[level][:].unique()) < n_nodes and n_bytes <= OWN_ROWS_BYTES:
            levels.append(level)
    return levels


def residual_rows(vectors: Tensor, trie: SidTrie, std: float) -> list[tuple[Tensor, Tensor]]:
    """By level: the shared rows of its codes, float32 [K_l, H], 0 for codes that no item has, and the own rows of its nodes, [n, H].

    vectors: float32 [N, H], by item. std: of the entries of a level's rows, shared and own summed.
    """
    rest, rows = vectors, []
    for level, size in enumerate(trie.level_sizes):
        node = trie.node_of_item[level + 1][:]
        centroids = _means(rest, node, trie.n_nodes[level + 1])
        rest = rest - centroids[node]
        scaled = centroids * (std / centroids.std().clamp(min=1e-12)) if bool(centroids.any()) else centroids
        shared = _means(scaled[node], trie.code[level][node], size)
        rows.append((shared, scaled - shared[trie.code[level][:]]))
    return rows


def with_unused_rows(shared: Tensor, used: Tensor, codebook: np.ndarray) -> Tensor:
    """`shared` [K, H], a level's rows, with rows for the codes that are not in `used`, int64 [n].

    The affine map that takes the used code vectors of `codebook` [K, D] nearest to their rows (least squares) gives them, each at the mean
    norm of the used rows. Where code vectors do not differ, as a dedup token's, they are the mean of the used rows.
    """
    unused = torch.ones(len(shared), dtype=torch.bool).index_fill(0, used, False)
    if not unused.any():
        return shared
    known = shared[used]
    rows = known.mean(dim=0).expand(int(unused.sum()), -1)
    if has_geometry(codebook):
        # in float64, rounded at the end, as in embedding_init
        vectors = np.concatenate([codebook, np.ones((len(codebook), 1))], axis=1, dtype=np.float64)
        mapping = np.linalg.lstsq(vectors[used.numpy()], known.double().numpy())[0]
        rows = torch.from_numpy(vectors[unused.numpy()] @ mapping)
        rows = (rows * known.double().norm(dim=1).mean() / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)).float()
    return shared.index_put((unused,), rows)


def _means(vectors: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """float32 [n_groups, H]: the mean of `vectors` [R, H] by group, int64 [R]; 0 for a group without any."""
    sums = vectors.new_zeros(n_groups, vectors.shape[1]).index_add(0, groups, vectors)
    return sums / torch.bincount(groups, minlength=n_groups).clamp(min=1)[:, None]

"""From an item's state to the codes of the next item, over the trie's children: three heads with one interface.

    marginal     a softmax over items; a code's probability is the exact marginal of the items below it
    additive     state + a linear map a level + a row of the parent, times the children's rows: one product a level scores every node
    transformer  a small transformer over the state and the cumulative sums of the prefix's rows (arXiv 2203.01941)

Of each: `child_log_probs` (any prefixes), `leaf_log_probs` (every item) and `item_losses` (training).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.decoding.rq_transformer.blocks import Block
from sidrec.decoding.rq_transformer.configuration import RqTransformerConfig
from sidrec.decoding.rq_transformer.item_softmax import item_losses
from sidrec.decoding.rq_transformer.node_rows import NodeTable

DENSE_LEVEL = 32  # a level of at most so many times a node's most children is scored whole in training


class DepthHead(nn.Module):
    """The interface."""

    def leaf_log_probs(self, states: Tensor, table: NodeTable) -> Tensor:
        """float32 [B, N]: log π of the item at every leaf. states: [B, H]."""
        raise NotImplementedError

    def child_log_probs(
        self, states: Tensor, level: int, nodes: Tensor, child: Tensor, exists: Tensor, table: NodeTable
    ) -> Tensor:
        """float32 [R, B, M]: log π of each child of `nodes`, -inf where it does not exist.

        states: [R, B, H]. nodes: int64 [R], at depth `level`. child, exists: [R, M], of `SidTrie.padded_children`.
        """
        raise NotImplementedError

    def item_losses(self, states: Tensor, leaves: Tensor, table: NodeTable) -> Tensor:
        """float32 [R]: -log π of the items at `leaves`, int64 [R]. states: [R, H]."""
        raise NotImplementedError


class MarginalHead(DepthHead):
    """p(item) = softmax of state · item row + item bias; the codes' conditionals on the trie are its marginals."""

    def __init__(self, _config: RqTransformerConfig) -> None:
        super().__init__()

    def leaf_log_probs(self, states: Tensor, table: NodeTable) -> Tensor:
        return (states @ table.item_rows.T + table.item_bias).float().log_softmax(-1)

    def child_log_probs(
        self, states: Tensor, level: int, nodes: Tensor, child: Tensor, exists: Tensor, table: NodeTable
    ) -> Tensor:
        n_rows, n_requests, _ = states.shape
        masses = self.node_log_masses(self.leaf_log_probs(states.flatten(0, 1), table), level, table)
        mass = masses.view(n_rows, n_requests, -1).gather(2, child[:, None].expand(-1, n_requests, -1))
        return mass.masked_fill(~exists[:, None], -torch.inf).log_softmax(-1)

    def node_log_masses(self, leaf_log_probs: Tensor, level: int, table: NodeTable) -> Tensor:
        """float32 [B, n]: log of the summed probability of the items below every node at depth level + 1."""
        largest = leaf_log_probs.amax(1, keepdim=True)
        mass = (leaf_log_probs - largest).exp().T
        sums = mass.new_zeros(table.trie.n_nodes[level + 1], mass.shape[1])
        sums = sums.index_add(0, table.paths.ancestors[level], mass)
        return sums.T.clamp(min=torch.finfo(mass.dtype).tiny).log() + largest

    def item_losses(self, states: Tensor, leaves: Tensor, table: NodeTable) -> Tensor:
        return item_losses(states, table.item_rows, table.item_bias, leaves, table.popularity)


class ScoredChildren(DepthHead):
    """What the two heads share whose code scores are a product of a prefix's state with the children's rows."""

    def prefix_states(self, states: Tensor, level: int, nodes: Tensor, table: NodeTable) -> Tensor:
        """[R, B, H]: what the children of `nodes` (int64 [R], at depth `level`) are scored with. states: [R, B, H]."""
        raise NotImplementedError

    def child_log_probs(
        self, states: Tensor, level: int, nodes: Tensor, child: Tensor, exists: Tensor, table: NodeTable
    ) -> Tensor:
        prefix = self.prefix_states(states, level, nodes, table)
        rows, bias = table.rows[level], table.bias[level]
        scores = torch.bmm(prefix, functional.embedding(child, rows).transpose(1, 2)) + bias[child][:, None]
        return scores.float().masked_fill(~exists[:, None], -torch.inf).log_softmax(-1)

    def item_losses(self, states: Tensor, leaves: Tensor, table: NodeTable) -> Tensor:
        losses = torch.zeros(len(states), device=states.device)
        trie = table.trie
        for level in range(trie.n_levels):
            node = table.paths.ancestors[level - 1][leaves] if level else torch.zeros_like(leaves)
            target = table.paths.ancestors[level][leaves]
            if level and bool((trie.first_child[level][node + 1] - trie.first_child[level][node] == 1).all()):
                continue  # forced codes alone
            if trie.n_nodes[level + 1] > DENSE_LEVEL * trie.widest(level):
                child, _, exists = trie.padded_children(level, node)
                log_probs = self.child_log_probs(states[:, None], level, node, child, exists, table)[:, 0]
                losses = losses - log_probs.gather(1, (target - child[:, 0])[:, None])[:, 0]
                continue
            prefix = self.prefix_states(states[:, None], level, node, table)[:, 0]
            scores = (prefix @ table.rows[level].T).float() + table.bias[level]
            if level:
                child, _, exists = trie.padded_children(level, node)
                siblings = scores.gather(1, child).masked_fill(~exists, -torch.inf)
            else:
                siblings = scores
            losses = losses + siblings.logsumexp(1) - scores.gather(1, target[:, None])[:, 0]
        return losses


class AdditiveHead(ScoredChildren):
    """A prefix's state is the item's state, a linear map of it a level, and a row of the prefix's node."""

    def __init__(self, config: RqTransformerConfig) -> None:
        super().__init__()
        n_nodes = config.n_nodes or []
        self.maps = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size, bias=False) for _ in n_nodes[1:])
        self.steps = nn.ParameterList(nn.Parameter(torch.zeros(n, config.hidden_size)) for n in n_nodes[:-1])

    def prefix_states(self, states: Tensor, level: int, nodes: Tensor, table: NodeTable) -> Tensor:
        if level == 0:
            return states
        steps = table.paths.of_trained(level - 1, self.steps[level - 1])
        return states + self.maps[level - 1](states) + functional.embedding(nodes, steps)[:, None]

    def leaf_log_probs(self, states: Tensor, table: NodeTable) -> Tensor:
        log_probs = torch.zeros(len(states), 1, device=states.device)
        for level, parents in enumerate(table.paths.parents):
            rows, bias = table.rows[level], table.bias[level]
            scores = states @ rows.T + bias
            if level:
                steps = table.paths.of_trained(level - 1, self.steps[level - 1])
                scores = scores + self.maps[level - 1](states) @ rows.T + (steps[parents] * rows).sum(1)
            log_probs = log_probs[:, parents] + log_softmax_among_siblings(scores.float(), parents)
        return log_probs


class TransformerHead(ScoredChildren):
    """The depth transformer: position 0 is the item's state, position l the state and the rows of the prefix's first l nodes summed."""

    def __init__(self, config: RqTransformerConfig) -> None:
        super().__init__()
        self.block = Block(
            config.hidden_size, config.num_attention_heads, config.intermediate_size, config.dropout, smoothing=False
        )
        self.norm = nn.RMSNorm(config.hidden_size)

    def prefix_states(self, states: Tensor, level: int, nodes: Tensor, table: NodeTable) -> Tensor:
        n_rows, n_requests, width = states.shape
        path = table.paths.upwards(level, nodes)
        sums = [states]
        for depth, above in enumerate(path):
            sums.append(sums[-1] + functional.embedding(above, table.rows[depth])[:, None] * width**0.5)
        hidden = torch.stack(sums, dim=2).flatten(0, 1)  # [R · B, level + 1, H]
        return self.norm(self.block(hidden)[:, -1].float()).view(n_rows, n_requests, width)

    def leaf_log_probs(self, states: Tensor, table: NodeTable) -> Tensor:
        """Runs the transformer on every node: for small catalogues, and to check a beam search by."""
        trie, n_requests = table.trie, len(states)
        log_probs = torch.zeros(n_requests, 1, device=states.device)
        for level, parents in enumerate(table.paths.parents):
            nodes = torch.arange(trie.n_nodes[level], device=states.device)
            prefix = self.prefix_states(states.expand(len(nodes), -1, -1), level, nodes, table)  # [n, B, H]
            scores = torch.einsum("cbh,ch->bc", prefix[parents], table.rows[level]) + table.bias[level]
            log_probs = log_probs[:, parents] + log_softmax_among_siblings(scores.float(), parents)
        return log_probs


def log_softmax_among_siblings(scores: Tensor, parents: Tensor) -> Tensor:
    """float32 [B, n]: scores [B, n] less the logsumexp over the nodes with the same parent. parents: int64 [n], rising."""
    n_parents = int(parents[-1]) + 1
    columns = scores.T
    largest = columns.new_full((n_parents, len(scores)), -torch.inf)
    largest = largest.scatter_reduce(0, parents[:, None].expand_as(columns), columns.detach(), "amax")
    centred = columns - largest[parents]
    sums = columns.new_zeros(n_parents, len(scores)).index_add(0, parents, centred.exp())
    return (centred - sums.log()[parents]).T


DEPTH_HEADS: dict[str, type[DepthHead]] = {
    "marginal": MarginalHead,
    "additive": AdditiveHead,
    "transformer": TransformerHead,
}

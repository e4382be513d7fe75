"""From an item's state to the codes of the next item, over the trie's children.

The first `joint_levels` codes are of one softmax over the nodes at that depth, whose masses are those of their children
(`joint_nodes.py`); a node scores the state times the sum of the rows on its path. The probability of a code above is the exact marginal of
the nodes below it. The codes further down follow one by one, each of a softmax over the children of the prefix, and there the heads differ:

    marginal     has none: all levels are joint, so it is a softmax over items
    additive     state + a linear map a level + a row of the parent, times the children's rows: one product a level scores every node
    transformer  a small transformer over the state and the cumulative sums of the prefix's rows (arXiv 2203.01941)

Of each: `child_log_probs` (any prefixes), `joint_log_probs` and `leaf_log_probs` (every node of a depth) and `item_losses` (training).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.decoding.rq_transformer.blocks import Block
from sidrec.decoding.rq_transformer.configuration import RqTransformerConfig
from sidrec.decoding.rq_transformer.item_softmax import item_losses
from sidrec.decoding.rq_transformer.joint_nodes import JointNodes, logsumexp_by_group
from sidrec.decoding.rq_transformer.node_rows import NodeTable

DENSE_LEVEL = 32  # a level of at most so many times a node's most children is scored whole in training
MOST_JOINT = 1 << 16  # nodes whose scores are one softmax


class DepthHead(nn.Module):
    """The joint codes, and what a head says of those below."""

    def __init__(self, config: RqTransformerConfig) -> None:
        super().__init__()
        self.joint_levels = config.joint_levels or len(config.n_nodes or [])
        self.exact_children = config.exact_children
        self.hidden_size = config.hidden_size

    def prefix_states(self, states: Tensor, level: int, nodes: Tensor, table: NodeTable) -> Tensor:
        """[R, B, H]: what the children of `nodes` (int64 [R], at depth `level`) are scored with. states: [R, B, H]."""
        raise NotImplementedError

    def scores_of_level(self, states: Tensor, level: int, table: NodeTable) -> Tensor:
        """[B, n]: the score of every node at depth level + 1 among its siblings. states: [B, H]."""
        raise NotImplementedError

    def joint_log_probs(self, states: Tensor, table: NodeTable) -> Tensor:
        """float32 [B, n]: log π of every prefix of `joint_levels` codes, by node. states: [B, H]."""
        return self.joint_nodes(table).scores(states).log_softmax(-1)

    def joint_nodes(self, table: NodeTable) -> JointNodes:
        return table.once("joint", lambda: JointNodes.of(table, self.joint_levels, self.exact_children))

    def leaf_log_probs(self, states: Tensor, table: NodeTable) -> Tensor:
        """float32 [B, N]: log π of the item at every leaf. states: [B, H]."""
        log_probs = self.joint_log_probs(states, table)
        for level in range(self.joint_levels, table.trie.n_levels):
            parents = table.paths.parents[level]
            scores = self.scores_of_level(states, level, table).float()
            log_probs = log_probs[:, parents] + log_softmax_among_siblings(scores, parents, table.trie.n_nodes[level])
        return log_probs

    def child_log_probs(
        self, states: Tensor, level: int, nodes: Tensor, child: Tensor, exists: Tensor, table: NodeTable
    ) -> Tensor:
        """float32 [R, B, M]: log π of each child of `nodes`, -inf where it does not exist.

        states: [R, B, H]. nodes: int64 [R], at depth `level`. child, exists: [R, M], of `SidTrie.padded_children`.
        """
        if level >= self.joint_levels:
            prefix = self.prefix_states(states, level, nodes, table)
            rows, bias = table.rows[level], table.bias[level]
            scores = torch.bmm(prefix, functional.embedding(child, rows).transpose(1, 2)) + bias[child][:, None]
            return scores.float().masked_fill(~exists[:, None], -torch.inf).log_softmax(-1)
        n_rows, n_requests, _ = states.shape
        masses = self.node_log_masses(self.joint_log_probs(states.flatten(0, 1), table), level, table)
        mass = masses.view(n_rows, n_requests, -1).gather(2, child[:, None].expand(-1, n_requests, -1))
        return mass.masked_fill(~exists[:, None], -torch.inf).log_softmax(-1)

    def chosen_log_probs(self, states: Tensor, leaves: Tensor, table: NodeTable) -> Tensor:
        """float32 [B, C]: log π of the items at `leaves`, int64 [B, C]. states: [B, H]."""
        trie, paths, flat = table.trie, table.paths, leaves.flatten()
        log_probs = self.joint_log_probs(states, table).gather(1, paths.ancestors[self.joint_levels - 1][leaves])
        each = states.repeat_interleave(leaves.shape[1], 0)[:, None]
        for level in range(self.joint_levels, trie.n_levels):
            node, target = (paths.ancestors[at][flat] for at in (level - 1, level))
            child, _, exists = trie.padded_children(level, node)
            steps = self.child_log_probs(each, level, node, child, exists, table)[:, 0]
            log_probs = log_probs + steps.gather(1, (target - child[:, 0])[:, None]).view(leaves.shape)
        return log_probs

    def node_log_masses(self, joint_log_probs: Tensor, level: int, table: NodeTable) -> Tensor:
        """float32 [B, n]: log of the summed probability of the joint nodes below every node at depth level + 1."""
        if level + 1 == self.joint_levels:
            return joint_log_probs
        largest = joint_log_probs.amax(1, keepdim=True)
        mass = (joint_log_probs - largest).exp().T
        sums = mass.new_zeros(table.trie.n_nodes[level + 1], mass.shape[1])
        sums = sums.index_add(0, table.paths.above(self.joint_levels, level + 1), mass)
        return sums.T.clamp(min=torch.finfo(mass.dtype).tiny).log() + largest

    def item_losses(self, states: Tensor, leaves: Tensor, table: NodeTable) -> Tensor:
        """float32 [R]: -log π of the items at `leaves`, int64 [R]. states: [R, H]."""
        depth, trie = self.joint_levels, table.trie
        joint, target = self.joint_nodes(table), table.paths.ancestors[depth - 1][leaves]
        losses = item_losses(states, joint.rows, joint.bias, joint.first[target], joint.popularity)
        if joint.node is not None:
            losses = losses - joint.further_mass(states, target)
        for level in range(depth, trie.n_levels):
            node, target = (table.paths.ancestors[at][leaves] for at in (level - 1, level))
            if bool((trie.first_child[level][node + 1] - trie.first_child[level][node] == 1).all()):
                continue  # forced codes alone
            child, _, exists = trie.padded_children(level, node)
            if trie.n_nodes[level + 1] > DENSE_LEVEL * trie.widest(level):
                log_probs = self.child_log_probs(states[:, None], level, node, child, exists, table)[:, 0]
                losses = losses - log_probs.gather(1, (target - child[:, 0])[:, None])[:, 0]
                continue
            prefix = self.prefix_states(states[:, None], level, node, table)[:, 0]
            scores = (prefix @ table.rows[level].T).float() + table.bias[level]
            siblings = scores.gather(1, child).masked_fill(~exists, -torch.inf)
            losses = losses + siblings.logsumexp(1) - scores.gather(1, target[:, None])[:, 0]
        return losses


class MarginalHead(DepthHead):
    """All codes are joint."""


class AdditiveHead(DepthHead):
    """A prefix's state is the item's state, a linear map of it a level, and a row of the prefix's node."""

    def __init__(self, config: RqTransformerConfig) -> None:
        super().__init__(config)
        width, below = config.hidden_size, list(enumerate(config.n_nodes or [], 1))[self.joint_levels - 1 : -1]
        self.maps = nn.ModuleDict({str(level): nn.Linear(width, width, bias=False) for level, _ in below})
        self.steps = nn.ParameterDict({str(level): nn.Parameter(torch.zeros(n, width)) for level, n in below})

    def prefix_states(self, states: Tensor, level: int, nodes: Tensor, table: NodeTable) -> Tensor:
        return self._moved(states, level) + functional.embedding(nodes, self._steps_of(level, table))[:, None]

    def scores_of_level(self, states: Tensor, level: int, table: NodeTable) -> Tensor:
        rows, parents = table.rows[level], table.paths.parents[level]
        steps = (self._steps_of(level, table)[parents] * rows).sum(1)
        return self._moved(states, level) @ rows.T + steps + table.bias[level]

    def _moved(self, states: Tensor, level: int) -> Tensor:
        return states + self.maps[str(level)](states)

    def _steps_of(self, level: int, table: NodeTable) -> Tensor:
        """[n, H]: the rows of the nodes at depth `level`."""
        return table.paths.of_trained(level - 1, self.steps[str(level)])


class TransformerHead(DepthHead):
    """The depth transformer: position 0 is the item's state, position l the state and the rows of the prefix's first l nodes summed."""

    def __init__(self, config: RqTransformerConfig) -> None:
        super().__init__(config)
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

    def scores_of_level(self, states: Tensor, level: int, table: NodeTable) -> Tensor:
        """Runs the transformer on every prefix: for small catalogues, and to check a beam search by."""
        nodes = torch.arange(table.trie.n_nodes[level], device=states.device)
        prefix = self.prefix_states(states.expand(len(nodes), -1, -1), level, nodes, table)  # [n, B, H]
        return torch.einsum("cbh,ch->bc", prefix[table.paths.parents[level]], table.rows[level]) + table.bias[level]


def joint_levels_of(depth_head: str, n_nodes: list[int]) -> int:
    """How many levels one softmax scores: all of a marginal head's; else as many as have MOST_JOINT nodes at most, but not the last.

    n_nodes: at depths 1 … L.
    """
    if depth_head == "marginal":
        return len(n_nodes)
    return max(1, sum(n <= MOST_JOINT for n in n_nodes[:-1]))


def log_softmax_among_siblings(scores: Tensor, parents: Tensor, n_parents: int) -> Tensor:
    """float32 [B, n]: scores [B, n] less the logsumexp over the nodes with the same parent. parents: int64 [n], below n_parents."""
    return scores - logsumexp_by_group(scores, parents, n_parents)[:, parents]


DEPTH_HEADS: dict[str, type[DepthHead]] = {
    "marginal": MarginalHead,
    "additive": AdditiveHead,
    "transformer": TransformerHead,
}

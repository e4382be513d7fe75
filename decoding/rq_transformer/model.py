"""The RQ-Transformer (arXiv 2203.01941) over semantic IDs: one position an item in the spatial transformer, a depth head that writes codes.

From outside it is a causal language model over SID tokens: flat `input_ids` in, logits of every code out, for the codes that exist
under the prefix so far. Inside, the L tokens of an item are one position, whose embedding is the sum of the rows of the nodes on its
trie path, and one state scores the whole trie. The spatial part may be a pretrained language model's decoder instead (`config.spatial`).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from sidrec.decoding.rq_transformer.blocks import Block, CausalSmoothing
from sidrec.decoding.rq_transformer.configuration import RqTransformerConfig
from sidrec.decoding.rq_transformer.depth_heads import DEPTH_HEADS, DepthHead, joint_levels_of
from sidrec.decoding.rq_transformer.item_softmax import item_losses
from sidrec.decoding.rq_transformer.node_rows import NodeRows, NodeTable, TriePaths, rows_or_zero
from sidrec.decoding.rq_transformer.pretrained_decoder import PretrainedDecoder
from sidrec.decoding.trie import SidTrie

NO_ITEM = -1
KEPT_TRIES = 2  # of the training catalogue, and of the one that is asked about
MOST_JUDGED = (
    1 << 23
)  # log-probabilities, of states times items, that are kept for their gradients; more are computed again for it
Judge = Callable[
    [Tensor, Tensor], Tensor
]  # (log π of every leaf [C, N], which of the answers, int64 [C]) → losses, float32 [C]


class SpatialTransformer(nn.Module):
    """Causal over items: position t sees the items up to it."""

    def __init__(self, config: RqTransformerConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.dropout,
                smoothing=config.smoothing,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size)

    def forward(self, items: Tensor) -> Tensor:
        """float32 [B, T, H]: the state after each item. items: [B, T, H], their embeddings."""
        hidden = self.dropout(items * items.shape[-1] ** 0.5)
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden.float())

    def at(self, items: Tensor, place: Tensor) -> Tensor:
        """float32 [B, H]: the state after one item of every row; of the last block no other is made. place: int64 [B]."""
        hidden = self.dropout(items * items.shape[-1] ** 0.5)
        for block in self.blocks[:-1]:
            hidden = block(hidden)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        return self.norm(last.at(hidden, place).float())


@dataclass
class RqTransformerOutput(ModelOutput):
    """logits: float32 [B, kept, V]. hidden_states: one tensor, float32 [B, T, H], the state of the items before each token.

    answer_losses: float32 [R], -log π of the answers, in the order of `answers.nonzero()`, first items left out. item_losses: float32
    [R], the auxiliary loss where it is no part of π: -log softmax over items of the sums of their path's rows.
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    answer_losses: Tensor | None = None
    item_losses: Tensor | None = None


class RqTransformerForCausalLM(PreTrainedModel, GenerationMixin):
    """See the module's docstring. Buffers of the training catalogue, by item: codes, int32 [N, L], its SIDs, and popularity, float32 [N],
    shares of the training interactions, by which a large catalogue's items are drawn."""

    codes: Tensor
    popularity: Tensor
    spatial: SpatialTransformer | PretrainedDecoder
    depth: DepthHead
    config_class = RqTransformerConfig
    base_model_prefix = "spatial"
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]

    def __init__(self, config: RqTransformerConfig) -> None:
        super().__init__(config)
        self.supports_gradient_checkpointing = config.spatial is not None  # the decoder's layers know how
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.spatial = SpatialTransformer(config) if config.spatial is None else PretrainedDecoder(config)
        self._make_catalogue_parts()
        self.post_init()

    def _make_catalogue_parts(self) -> None:
        """Rows, biases and the depth head, whose shapes are the catalogue's; empty while there is none."""
        config = self.config
        n_nodes, n_levels = config.n_nodes or [], len(config.level_sizes or [])
        self.nodes = NodeRows(n_nodes, config.own_levels or [], config.hidden_size)
        self.depth = DEPTH_HEADS[config.depth_head](config)
        n_items = n_nodes[-1] if n_nodes else 0
        self.register_buffer("codes", torch.zeros(n_items, n_levels, dtype=torch.int32))
        self.register_buffer("popularity", torch.full((n_items,), 1 / max(1, n_items)))
        self._trie: tuple[int, SidTrie] | None = None
        self._paths: list[TriePaths] = []
        self._tables: WeakKeyDictionary[TriePaths, tuple[list[int], NodeTable]] = WeakKeyDictionary()
        self._given: tuple[Tensor, Tensor, Tensor] | None = None

    def with_item_rows(self, codes: Tensor, rows: Tensor, bias: Tensor) -> RqTransformerForCausalLM:
        """A model of the same weights, which it shares, to recommend with: the items of SIDs `codes`, int64 [m, L], have the embeddings
        `rows`, float32 [m, H], and `bias`, float32 [m], in every trie that holds them."""
        other = copy(self)
        other._tables, other._given = WeakKeyDictionary(), (codes, rows, bias)
        return other

    def add_catalogue(
        self, trie: SidTrie, start_token: int, first_tokens: tuple[int, ...], own_levels: list[int]
    ) -> None:
        """Make the parts whose shapes are the catalogue's. Its SID tokens are in the vocabulary. Weights start from zero and from draws.

        trie: of items 0 … N - 1. own_levels: levels whose nodes have rows of their own.
        """
        codes = torch.stack([trie.code[d][trie.node_of_item[d + 1][:]] for d in range(trie.n_levels)], dim=1)
        assert trie.n_slots == trie.n_items, "a training catalogue has no holes"
        self.config.start_token, self.config.first_tokens = start_token, list(first_tokens)
        self.config.level_sizes, self.config.n_nodes = list(trie.level_sizes), list(trie.n_nodes[1:])
        self.config.own_levels = list(own_levels)
        if self.config.joint_levels is None:
            self.config.joint_levels = joint_levels_of(self.config.depth_head, self.config.n_nodes)
        self._make_catalogue_parts()
        self.depth.apply(self._init_weights)
        self.codes.copy_(codes)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CausalSmoothing):
            init.copy_(module.decay, torch.linspace(-2.0, 3.0, len(module.decay)))
            init.ones_(module.scale)
        if isinstance(module, Block):  # as in GPT-2, branches are small where there are many
            std = self.config.initializer_range / (2 * self.config.num_hidden_layers) ** 0.5
            for branch in (module.attention.out, module.feed_forward.down):
                init.normal_(branch.weight, mean=0.0, std=std)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def get_output_embeddings(self) -> None:
        """There is no output matrix: the codes' scores are the depth head's."""
        return

    @property
    def trie(self) -> SidTrie:
        """The training catalogue's."""
        key = id(self.codes)
        if self._trie is None or self._trie[0] != key:
            with torch.inference_mode(False):
                codes = self.codes.long().cpu()
                self._trie = (key, SidTrie(codes, self.config.level_sizes).to(self.codes.device))
        return self._trie[1]

    def table(self, trie: SidTrie | None = None) -> NodeTable:
        """The rows of the nodes of `trie`, by default the training catalogue's.

        While the model is not in training, and no gradient is wanted, they are kept until a weight changes.
        """
        paths = self._paths_of(self.trie if trie is None else trie)
        if self.training or torch.is_grad_enabled():
            return self._new_table(paths)
        weights = [x for weight in (self.embed_tokens.weight, *self.nodes.parameters()) for x in _identity(weight)]
        entry = self._tables.get(paths)
        if entry is None or entry[0] != weights:
            entry = self._tables[paths] = (weights, self._new_table(paths))
        return entry[1]

    def train(self, mode: bool = True) -> RqTransformerForCausalLM:
        """Forgets the kept tables: PyTorch's fused optimizers change weights without counting it."""
        self._tables.clear()
        return super().train(mode)

    def set_dropout(self, rate: float) -> None:
        """For training that goes on from a model with another share of dropped numbers."""
        self.config.dropout = rate
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate

    def _paths_of(self, trie: SidTrie) -> TriePaths:
        paths = next((paths for paths in self._paths if paths.trie is trie), None) or TriePaths(trie, self.trie)
        self._paths = [paths, *(other for other in self._paths if other is not paths)][:KEPT_TRIES]
        return paths

    def _new_table(self, paths: TriePaths) -> NodeTable:
        weight, places = self.embed_tokens.weight, zip(self.config.first_tokens, self.config.level_sizes, strict=True)
        rows = [weight[first : first + size] for first, size in places]
        table = NodeTable.of(self.nodes, rows, paths, self.popularity[self.trie.item_of_leaf[:]])
        if self._given is None:
            return table
        codes, item_rows, bias = self._given
        leaves = paths.trie.descend(codes)
        held = leaves >= 0
        return table.with_items(leaves[held], item_rows[held], bias[held])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        answers: Tensor | None = None,
        judge: Judge | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool | None = None,
        **_others: Any,
    ) -> RqTransformerOutput:
        """input_ids: int64 [B, T], `<history>` and the SIDs of items, padded on the left where `attention_mask` is 0, or on the right.

        answers: int64 [B, T], the item whose SID begins at a token and is asked for, NO_ITEM elsewhere; then there are no logits.
        judge: what is lost by the whole distribution where an answer is asked for, in the place of -log π of the answer.
        logits_to_keep: logits of the last so many tokens; 0: of all. Of codes that do not exist they are the lowest number.
        """
        table = self.table()
        states, start = self._all_states(input_ids, attention_mask, table)
        if answers is not None:
            asked, leaves = self._asked(states, answers, table)
            return self._losses(asked, leaves, table) if judge is None else self._judged(asked, judge, table)
        n_levels, length = len(self.config.level_sizes), input_ids.shape[1]
        place = (torch.arange(length, device=input_ids.device) - start[:, None]).clamp(min=0)  # 0 at <history>
        hidden = states.gather(1, (place // n_levels)[..., None].expand(-1, -1, states.shape[2]))
        last = slice(-logits_to_keep if logits_to_keep else None, None)
        logits = self._logits(input_ids, hidden[:, last], place[:, last], table)
        return RqTransformerOutput(logits=logits, hidden_states=(hidden,) if output_hidden_states else None)

    def asked_states(self, input_ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor, NodeTable]:
        """float32 [R, H], the states that the answers are asked of, int64 [R], the answers' leaves, in the order of `asked_rows`, and the
        table that they are scored with. input_ids, answers: as of `forward`."""
        table = self.table()
        return *self._asked(self._all_states(input_ids, None, table)[0], answers, table), table

    def _asked(self, states: Tensor, answers: Tensor, table: NodeTable) -> tuple[Tensor, Tensor]:
        rows, at = asked_rows(answers)
        return states[rows, (at - 1) // len(self.config.level_sizes)], table.trie.leaf_of_item(answers[rows, at])

    def _judged(self, asked: Tensor, judge: Judge, table: NodeTable) -> RqTransformerOutput:
        every = torch.arange(len(asked), device=asked.device)
        parts = every.split(max(1, MOST_JUDGED // table.trie.n_items))

        def losses_of(states: Tensor, part: Tensor) -> Tensor:
            return judge(self.depth.leaf_log_probs(states, table), part)

        if len(parts) == 1:
            return RqTransformerOutput(answer_losses=losses_of(asked, every))
        self.depth.leaf_log_probs(
            asked[:0], table
        )  # makes what the table keeps: the second time nothing must be made anew
        losses = [checkpoint(losses_of, asked[part], part, use_reentrant=False) for part in parts]
        return RqTransformerOutput(answer_losses=torch.cat(losses))

    def _losses(self, asked: Tensor, leaves: Tensor, table: NodeTable) -> RqTransformerOutput:
        losses = self.depth.item_losses(asked, leaves, table)
        if self.config.depth_head == "marginal" or not self.config.item_loss_weight:
            return RqTransformerOutput(answer_losses=losses)
        auxiliary = item_losses(asked, table.item_rows, table.item_bias, leaves, table.popularity)
        return RqTransformerOutput(answer_losses=losses, item_losses=self.config.item_loss_weight * auxiliary)

    def last_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [B, H]: the state after the last item of every history. input_ids, attention_mask: int64 [B, T], left-padded."""
        items, start = self._embedded(input_ids, attention_mask, self.table())
        place = (input_ids.shape[1] - 1 - start) // len(self.config.level_sizes) - 1
        if not items.shape[1]:
            return items.new_zeros(len(items), self.config.hidden_size, dtype=torch.float32)
        return self.spatial.at(items, place.clamp(min=0), *self.opening()).masked_fill((place < 0)[:, None], 0.0)

    def leaf_log_probs(self, input_ids: Tensor, attention_mask: Tensor, trie: SidTrie) -> Tensor:
        """float32 [B, N]: log π of the item at every leaf of `trie`. input_ids, attention_mask: int64 [B, T], left-padded."""
        return self.depth.leaf_log_probs(self.last_states(input_ids, attention_mask), self.table(trie))

    def _all_states(self, input_ids: Tensor, attention_mask: Tensor | None, table: NodeTable) -> tuple[Tensor, Tensor]:
        """float32 [B, 1 + items, H], before any item and after each one, the oldest first whatever the padding; and int64 [B], where
        every row's `<history>` stands. Before any item the state is 0: there the nodes' biases decide, which learn popularity."""
        items, start = self._embedded(input_ids, attention_mask, table)
        return nn.functional.pad(self.spatial(items, *self.opening()), (0, 0, 1, 0)), start

    def opening(self) -> tuple[Tensor, ...]:
        """What a pretrained decoder also needs: [O, H], the rows of the opening's words."""
        if self.config.spatial is None:
            return ()
        return (self.embed_tokens(torch.tensor(self.config.opening or [], dtype=torch.long, device=self.device)),)

    def _embedded(self, input_ids: Tensor, attention_mask: Tensor | None, table: NodeTable) -> tuple[Tensor, Tensor]:
        """[B, items, H], the embeddings of the items, the oldest first whatever the padding, and where every row's `<history>` stands."""
        n_levels, length = len(self.config.level_sizes), input_ids.shape[1]
        first_tokens = torch.tensor(self.config.first_tokens, device=input_ids.device)
        start = input_ids.new_zeros(len(input_ids)) if attention_mask is None else attention_mask.long().argmax(1)
        n_items = (length - 1) // n_levels
        place = start[:, None] + 1 + torch.arange(n_items * n_levels, device=input_ids.device)
        tokens = input_ids.gather(1, place.clamp(max=length - 1)).view(len(input_ids), n_items, n_levels)
        inside = (place < length).view_as(tokens)
        return self.embed_items(torch.where(inside, tokens - first_tokens, -1), table), start

    def embed_items(self, codes: Tensor, table: NodeTable) -> Tensor:
        """float32 [..., H]: the sums of the rows of the nodes on the paths of `codes`, int64 [..., L]; 0 where one is no code.

        An item that the training catalogue did not have has its codes' shared rows, and the own rows of the nodes that are not new.
        """
        flat, sizes = codes.reshape(-1, codes.shape[-1]), torch.tensor(self.config.level_sizes, device=codes.device)
        leaves = self.trie.descend(flat)
        rows = rows_or_zero(table.item_rows, leaves)
        new = ((leaves < 0) & ((flat >= 0) & (flat < sizes)).all(1)).nonzero()[:, 0]
        if len(new):
            rows = rows.index_copy(0, new, self._rows_of_new(flat[new]))
        return rows.view(*codes.shape[:-1], self.config.hidden_size)

    def _rows_of_new(self, codes: Tensor) -> Tensor:
        node, rows = torch.zeros_like(codes[:, 0]), torch.zeros((), device=codes.device)
        for level, first in enumerate(self.config.first_tokens):
            node = self.trie.find(level, node, codes[:, level])
            rows = rows + self.embed_tokens(codes[:, level] + first)
            own_rows = self.nodes.own_rows(level)
            rows = rows if own_rows is None else rows + rows_or_zero(own_rows, node)
        return rows

    def _logits(self, input_ids: Tensor, hidden: Tensor, place: Tensor, table: NodeTable) -> Tensor:
        """float32 [B, kept, V]. hidden: [B, kept, H], of the last tokens. place: int64 [B, kept], of the token, 0 for `<history>`."""
        n_rows, n_kept = place.shape
        length, n_levels = input_ids.shape[1], len(self.config.level_sizes)
        logits = hidden.new_full((n_rows, n_kept, self.config.vocab_size), torch.finfo(torch.float32).min)
        at = torch.arange(length - n_kept, length, device=input_ids.device).expand(n_rows, -1)
        for level, first in enumerate(self.config.first_tokens):
            row, column = (place % n_levels == level).nonzero(as_tuple=True)
            if not len(row):
                continue
            back = torch.arange(
                level - 1, -1, -1, device=input_ids.device
            )  # the prefix's tokens end at the token itself
            tokens = input_ids[row[:, None], (at[row, column, None] - back).clamp(min=0)]
            codes = tokens - torch.tensor(self.config.first_tokens[:level], device=tokens.device)
            node = table.trie.descend(codes)
            child, code, exists = table.trie.padded_children(level, node.clamp(min=0))
            exists = exists & (node >= 0)[:, None]
            log_probs = self.depth.child_log_probs(
                hidden[row, column, None], level, node.clamp(min=0), child, exists, table
            )
            lowest = torch.finfo(torch.float32).min
            values = log_probs[:, 0].nan_to_num(nan=lowest, neginf=lowest)
            answer = values.new_full((len(row), self.config.level_sizes[level] + 1), lowest)
            answer.scatter_(1, torch.where(exists, code, self.config.level_sizes[level]), values)
            logits[row, column, first : first + self.config.level_sizes[level]] = answer[:, :-1]
        return logits


def asked_rows(answers: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [R] each: the row and the place of every answer in `answers`, int64 [B, T], but those of first items, of which there is nothing
    to learn."""
    rows, at = (answers != NO_ITEM).nonzero(as_tuple=True)
    later = at > 1  # at 0 stands <history>
    return rows[later], at[later]


def rq_transformer_of(model: nn.Module) -> RqTransformerForCausalLM | None:
    """The RQ-Transformer that `model` is, or that a wrapper holds; None for other language models."""
    return next((module for module in model.modules() if isinstance(module, RqTransformerForCausalLM)), None)


def _identity(weight: Tensor) -> tuple[int, int]:
    """What changes when a weight is written to or exchanged."""
    return id(weight), weight._version if not weight.is_inference() else 0


AutoConfig.register(RqTransformerConfig.model_type, RqTransformerConfig)
AutoModelForCausalLM.register(RqTransformerConfig, RqTransformerForCausalLM)

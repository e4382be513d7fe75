"""A pretrained language model with one position an item: its decoder as the spatial transformer of an RQ-Transformer.

An item's embedding lies where the rows of words lie: around their mean, as far from it as they are. What the decoder's last norm gives is
long and nearly the same after every item. So a state is what differs from its mean, scaled until an untrained model's scores are small; the
nodes' biases start with popularity, which a pretrained model's learning rate would be long in reaching.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from sidrec.data.dataset import Dataset
from sidrec.decoding.policy import SidVocabulary
from sidrec.decoding.rq_transformer.configuration import RqTransformerConfig
from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM
from sidrec.decoding.rq_transformer.pretrained_decoder import PretrainedDecoder
from sidrec.pipeline.errors import InputError
from sidrec.sft.examples import chat_openings
from sidrec.sft.node_init import add_catalogue
from sidrec.sft.settings import BackboneConfig, SftConfig
from sidrec.sft.vocabulary import add_sid_tokens
from sidrec.tokenizer.semantic_ids import SemanticIds

HISTORIES, ITEMS = 32, 30  # that the mean state is taken of
FIRST_SPREAD = 0.5  # standard deviation of a state's first scores over items, of each of its two parts
MOST_SCALE = 1.0  # where the states hardly differ, their differences are not made large
NOT_OF_A_SHAPE = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "quantization_config",
)


def one_position_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    sids: SemanticIds,
    config: SftConfig,
    backbone: BackboneConfig,
    seed: int,
) -> tuple[RqTransformerForCausalLM, SidVocabulary]:
    """The RQ-Transformer that takes over the decoder and the rows of words of `model`, with the catalogue, and where its SID tokens lie.

    Raises InputError where the decoder does more to words than look up their rows, or its heads do not suit the depth head.
    """
    made, old_rows = taken_over(model, opening_tokens(tokenizer, config, backbone), backbone), len(tokenizer)
    std = spread_of_rows(made.embed_tokens.weight[:old_rows].detach(), sids.n_levels)
    vocabulary = add_sid_tokens(made, tokenizer, sids, [""] * sids.n_items, "mean", seed)
    add_catalogue(made, vocabulary, sids, dataset.train_sequences, seed, own_rows=backbone.own_rows, std=std)
    start_states(made, sids, dataset.train_sequences, old_rows)
    return made, vocabulary


def opening_tokens(tokenizer: PreTrainedTokenizerBase, config: SftConfig, backbone: BackboneConfig) -> list[int]:
    """What stands before the items: the opening's words, as the tokenizer begins a text, or the question of a chat."""
    if config.chat_template:
        return list(chat_openings(tokenizer)["next_item"])
    tokens = tokenizer(backbone.opening)["input_ids"]
    return tokens[:-1] if tokens[-1:] == [tokenizer.eos_token_id] else tokens


def taken_over(model: PreTrainedModel, opening: list[int], config: BackboneConfig) -> RqTransformerForCausalLM:
    """An RQ-Transformer without a catalogue, of the decoder and the rows of `model`. opening: token ids."""
    decoder, embedding, shape = model.base_model, model.get_input_embeddings(), model.config
    remedy = f"{type(model).__name__} cannot have one position an item; set --layout flat."
    if not reads_rows(decoder, embedding.weight):
        raise InputError(
            f"layout=one_position gives rows in the place of words, which changes what a model reads: {remedy}"
        )
    if config.depth_head == "transformer" and shape.hidden_size % (2 * shape.num_attention_heads):
        raise InputError(f"depth_head=transformer needs heads of even width, which divide the model's: {remedy}")
    settings = RqTransformerConfig(
        vocab_size=embedding.num_embeddings,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size,
        dropout=0.0,
        smoothing=config.smoothing,
        depth_head=config.depth_head,
        joint_levels=config.joint_levels,
        exact_children=config.exact_children,
        item_loss_weight=config.item_loss_weight,
        spatial={name: value for name, value in shape.to_dict().items() if name not in NOT_OF_A_SHAPE},
        opening=opening,
        pad_token_id=shape.pad_token_id,
        eos_token_id=shape.eos_token_id,
    )
    with no_init_weights():  # what is made is exchanged for the model's own
        made = RqTransformerForCausalLM(settings)
    spatial = made.spatial
    assert isinstance(spatial, PretrainedDecoder)
    if type(spatial.decoder) is not type(decoder):
        raise InputError(f"layout=one_position needs a model of words alone: {remedy}")
    made.embed_tokens.weight = embedding.weight
    decoder.set_input_embeddings(None)
    spatial.decoder = decoder
    return made


@torch.no_grad()
def reads_rows(decoder: PreTrainedModel, rows: Tensor) -> bool:
    """Whether a decoder makes the same of token ids as of their rows."""
    ids = torch.arange(min(3, len(rows)))[None]
    by_id = decoder(input_ids=ids, use_cache=False).last_hidden_state
    by_row = decoder(inputs_embeds=nn.functional.embedding(ids, rows), use_cache=False).last_hidden_state
    return torch.allclose(by_id, by_row, rtol=1e-3, atol=1e-3)


def spread_of_rows(rows: Tensor, n_levels: int) -> float:
    """The standard deviation that a level's rows have where the sums of `n_levels` are as far from 0 as `rows` [V, H] from their mean."""
    distance = (rows - rows.mean(dim=0)).norm(dim=1).median()
    return float(distance / (n_levels * rows.shape[1]) ** 0.5)


@torch.no_grad()
def start_states(
    model: RqTransformerForCausalLM, sids: SemanticIds, sequences: Sequence[np.ndarray], old_rows: int
) -> None:
    """Move the items to where the words are, the states to around 0, and the nodes' biases to popularity, in place.

    sequences: users' training items, of which some are read. old_rows: tokens before the SID tokens.
    """
    weight, spatial, was_training = model.embed_tokens.weight, model.spatial, model.training
    assert isinstance(spatial, PretrainedDecoder)
    first = model.config.first_tokens[0]
    weight[first : first + sids.level_sizes[0]] += weight[:old_rows].mean(dim=0)
    model.eval()
    table, codes = model.table(), torch.from_numpy(sids.codes).long()
    histories = [model.embed_items(codes[sequence[:ITEMS]], table)[None] for sequence in sequences[:HISTORIES]]
    hidden = torch.cat([spatial.hidden(history, *model.opening())[0] for history in histories])
    spatial.scale.fill_(min(MOST_SCALE, FIRST_SPREAD / spread_of_scores(hidden, table.item_rows)))
    states = spatial.scale * hidden
    if spatial.smoothing is not None:
        smoothed = torch.cat([spatial.smoothing(history)[0] for history in histories])
        size = FIRST_SPREAD / spread_of_scores(smoothed, table.item_rows)
        spatial.smoothing.scale.fill_(min(MOST_SCALE, size))
        states = states + spatial.smoothing.scale * smoothed
    spatial.centre.copy_(states.mean(dim=0))
    start_biases(model)
    model.train(was_training)


def spread_of_scores(states: Tensor, rows: Tensor) -> float:
    """The standard deviation, over items, of what `states` [n, H], less their mean, score the items' `rows` [N, H] with."""
    scores = (states - states.mean(dim=0)) @ rows.T
    return max(float(scores.std(dim=1).mean()), 1e-12)


def start_biases(model: RqTransformerForCausalLM) -> None:
    """A node's bias: log of its share of the training interactions below the node above it, the rarest item's share added to each item."""
    trie, paths = model.trie, model.table().paths
    shares = model.popularity[trie.item_of_leaf[:]]
    shares = shares + shares[shares > 0].min()
    above = shares.sum()[None]
    for level, ancestors in enumerate(paths.ancestors):
        here = shares.new_zeros(trie.n_nodes[level + 1]).index_add(0, ancestors, shares)
        model.nodes.bias[level].copy_((here / above[paths.parents[level]]).log())
        above = here

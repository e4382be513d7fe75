"""An RQ-Transformer as one ONNX graph: a batch of histories in, the log-probability of every item out.

    items      int64 [batch, max_items]    item numbers, oldest first, the newest `max_items` of a history; -1 after the last one
    log_probs  float32 [batch, n_items]    log π of every item, by its number

The catalogue is part of the graph. Items of the history are not left out: set their columns to -inf before taking the best.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from sidrec.decoding.rq_transformer.model import RqTransformerForCausalLM
from sidrec.pipeline.errors import InputError

OPSET = 18  # the first with a maximum by groups
INPUT, OUTPUT = "items", "log_probs"
MOST_BYTES = 2_000_000_000  # of a protobuf message


class ItemScores(nn.Module):
    """The model's answer to histories of its training catalogue's items, without a search: every item is scored."""

    leaf_of_item: Tensor
    item_rows: Tensor

    def __init__(self, model: RqTransformerForCausalLM) -> None:
        super().__init__()
        self.spatial, self.depth, self.table = model.spatial, model.depth, model.table()
        self.depth.joint_nodes(self.table)  # kept by the table, so that the graph has it as a constant
        self.register_buffer("leaf_of_item", model.trie.leaf_of_item(torch.arange(model.trie.n_slots)))
        self.register_buffer("item_rows", self.table.item_rows)  # by leaf

    def forward(self, items: Tensor) -> Tensor:
        """float32 [B, N], by item. items: int64 [B, T], -1 after the last one of a row."""
        is_item = items >= 0
        embedded = self.item_rows[self.leaf_of_item[items.clamp(min=0)]] * is_item[..., None]
        states = nn.functional.pad(self.spatial(embedded), (0, 0, 1, 0))  # before any item the state is 0
        last = is_item.sum(1)[:, None, None].expand(-1, 1, states.shape[2])
        return self.depth.leaf_log_probs(states.gather(1, last)[:, 0], self.table)[:, self.leaf_of_item]


def write_onnx(model: RqTransformerForCausalLM, max_items: int, path: Path) -> None:
    """Write the graph for histories of up to `max_items` items and any number of rows, weights included. model: in evaluation mode.

    Raises InputError when the weights are more than one ONNX file holds, or a pretrained decoder's.
    """
    if model.config.spatial is not None:
        raise InputError(
            "--format onnx is for an RQ-Transformer from scratch, without a pretrained decoder; serve it with sidrec."
        )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names operators of packages that are not installed
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = ItemScores(model).eval()
        size = sum(rows.numel() for rows in (*graph.parameters(), *graph.buffers(), *graph.table.rows)) * 4
        if size > MOST_BYTES:
            raise InputError(
                f"the model has {size / 1e9:.1f} GB of weights, and one ONNX file holds 2 GB; serve it with sidrec."
            )
        program = torch.onnx.export(
            graph,
            (torch.full((2, max_items), -1),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()  # where in this machine's files the node was made
        program.save(path)

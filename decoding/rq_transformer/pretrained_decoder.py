"""A pretrained language model's layers as the spatial transformer: they read a text opening, then one position an item."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from sidrec.decoding.rq_transformer.blocks import CausalSmoothing
from sidrec.decoding.rq_transformer.configuration import RqTransformerConfig


class PretrainedDecoder(nn.Module):
    """scale · (what the decoder's last norm gives) + the smoothed items - centre: position t sees the opening and the items up to it.

    The decoder has no embedding of its own: the rows of words lie in the RQ-Transformer's. scale, centre: float32 [H], learnt;
    `sft/one_position.py` sets them so that the first scores are small and no item has more than another in all states.
    """

    def __init__(self, config: RqTransformerConfig) -> None:
        super().__init__()
        assert config.spatial is not None
        shape = AutoConfig.for_model(**config.spatial)
        self.decoder = AutoModel.from_config(shape, dtype=torch.get_default_dtype())
        self.decoder.set_input_embeddings(None)
        self.smoothing = CausalSmoothing(config.hidden_size) if config.smoothing else None
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.centre = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, items: Tensor, opening: Tensor) -> Tensor:
        """float32 [B, T, H]: the state after each item. items: [B, T, H], their embeddings. opening: [O, H], rows of words."""
        if not items.shape[1]:
            return items.float()
        states = self.scale * self.hidden(items, opening) - self.centre
        return states if self.smoothing is None else states + self.smoothing(items.float())

    def hidden(self, items: Tensor, opening: Tensor) -> Tensor:
        """float32 [B, T, H]: what the decoder's last norm gives at each item. items, opening: as of `forward`."""
        assert items.ndim == 3
        assert opening.ndim == 2
        positions = torch.cat([opening.expand(len(items), -1, -1), items], dim=1)
        whole = self.decoder(inputs_embeds=positions, use_cache=False).last_hidden_state
        return whole[:, len(opening) :].float()

    def at(self, items: Tensor, place: Tensor, opening: Tensor) -> Tensor:
        """float32 [B, H]: the state after one item of every row. place: int64 [B]."""
        return self(items, opening)[torch.arange(len(items), device=items.device), place]

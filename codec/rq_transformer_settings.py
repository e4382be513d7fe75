"""The settings of the model of codes."""

from __future__ import annotations

from dataclasses import dataclass, field

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.ranges import check_least
from sidrec.tokenizer.autoencoders.settings import check_share


@dataclass
class RQTransformerSettings:
    """The model of codes (sidrec.codec.rq_transformer)."""

    width: int = field(default=256, metadata={"help": "Width of both transformers."})
    spatial_layers: int = field(default=4, metadata={"help": "Layers over latents."})
    depth_layers: int = field(default=1, metadata={"help": "Layers over the codes of one latent."})
    heads: int = field(default=4, metadata={"help": "Attention heads of every layer.", "rare": True})
    transformer_dropout: float = field(default=0.1, metadata={"help": "Dropout of every branch.", "rare": True})
    code_temperature: float = field(
        default=0.0,
        metadata={
            "help": "Above 0, codes are drawn, and targets are soft, by softmax(-squared distance / temperature) (arXiv 2203.01941, 3.2.3)."
        },
    )

    def __post_init__(self) -> None:
        for name in ("width", "spatial_layers", "depth_layers", "heads"):
            check_least(self, name, 1)
        for name in ("transformer_dropout", "code_temperature"):
            check_least(self, name, 0.0)
        check_share(self, "transformer_dropout")
        if self.width % (2 * self.heads):
            raise InputError(
                f"width is {self.width}; give a multiple of {2 * self.heads}, so that heads have an even width."
            )

"""The settings of the text codec, in the groups that its stages share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.ranges import check_least
from sidrec.tokenizer.autoencoders.settings import check_share


@dataclass
class CodecNetworkSettings:
    """Encoder and decoder (sidrec.codec.encoder, sidrec.codec.decoder)."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Language model whose states the encoder compresses and whose copy decodes: a hub name, a folder, or smollm2-135m; "
            "`sidrec codec text --tokenizer` must name the same. Without it both are trained from scratch."
        },
    )
    compression: int = field(default=4, metadata={"help": "Tokens a latent: 2, 4, 8 or a higher power of two."})
    hidden_size: int = field(default=256, metadata={"help": "Width from scratch; a pretrained model has its own."})
    num_layers: int = field(
        default=1, metadata={"help": "Layers of each backbone from scratch, the encoder's and the decoder's."}
    )
    latent_dim: int = field(default=256, metadata={"help": "Length of a latent, which is that of a code's vector."})
    num_latent_layers: int = field(
        default=1, metadata={"help": "Self-attention layers over latents, in the encoder and in the decoder."}
    )
    num_attention_heads: int = field(default=4, metadata={"help": "Heads of these layers.", "rare": True})
    kernel_size: int = field(
        default=2, metadata={"help": "Positions that a convolution reads, an even number; 2 reads none twice."}
    )
    causal: bool = field(
        default=True,
        metadata={
            "help": "Latents of a text's start stay when text is appended, which completion needs; false: every latent reads the "
            "whole text."
        },
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout of every branch.", "rare": True})

    def __post_init__(self) -> None:
        for name in ("hidden_size", "latent_dim", "num_attention_heads"):
            check_least(self, name, 1)
        for name in ("num_layers", "num_latent_layers"):
            check_least(self, name, 0)
        for name, least in (("compression", 2), ("kernel_size", 2)):
            check_least(self, name, least)
        check_least(self, "dropout", 0.0)
        check_share(self, "dropout")
        if self.compression & (self.compression - 1):
            raise InputError(f"compression is {self.compression}; every convolution halves, so give 2, 4, 8, 16, ….")
        if self.kernel_size % 2:
            raise InputError(
                f"kernel_size is {self.kernel_size}; give an even number, so that a length is halved exactly."
            )
        for name in ("hidden_size", "latent_dim"):
            width = getattr(self, name)
            if width % (2 * self.num_attention_heads):
                raise InputError(
                    f"{name} is {width}, which {self.num_attention_heads} heads of even width do not make; give a multiple of "
                    f"{2 * self.num_attention_heads}."
                )
        if not self.causal and self.model_name_or_path:
            raise InputError("causal is false, and a pretrained language model is causal; leave one of the two out.")


@dataclass
class CodecQuantizerSettings:
    """The residual quantizer (sidrec.codec.quantizer)."""

    codebook_sizes: list[int] = field(
        default_factory=lambda: [4096] * 4,
        metadata={
            "help": "Codes of each level; 4 levels of 4096 are 48 bits a latent, 12 bits a token at a compression of 4."
        },
    )
    share_codebooks: bool = field(
        default=False, metadata={"help": "One codebook for all levels (arXiv 2203.01941); sizes are then equal."}
    )
    ema_decay: float = field(default=0.99, metadata={"help": "Decay of the codebooks' moving averages, a step."})
    threshold_ema_dead_code: float = field(
        default=0.05,
        metadata={
            "help": "Share of an equal use below which a code's moving average counts as dead; 0 = never.",
            "rare": True,
        },
    )
    reset_every: int = field(default=20, metadata={"help": "Steps between replacements of dead codes.", "rare": True})
    commitment_weight: float = field(
        default=0.25, metadata={"help": "Weight of the commitment loss, the mean over levels.", "rare": True}
    )
    size_gain: float = field(
        default=0.0,
        metadata={
            "help": "Above 0, codebook_sizes are the most, and a level's codebook doubles while a doubling takes at least this share off "
            "what is left of the latents' variance, such as 0.05."
        },
    )
    quantize: bool = field(default=True, metadata={"help": "False: no quantizer, which is the ceiling of accuracy."})

    def __post_init__(self) -> None:
        sizes = self.codebook_sizes
        if not isinstance(sizes, list) or not sizes or not all(isinstance(size, int) and size >= 2 for size in sizes):
            raise InputError(
                f"codebook_sizes is {sizes!r}; give a list of whole numbers of at least 2, such as 512 512."
            )
        if self.share_codebooks and len(set(sizes)) > 1:
            raise InputError(f"codebook_sizes is {sizes}; a shared codebook has one size for all levels.")
        for name in ("ema_decay", "threshold_ema_dead_code", "commitment_weight", "size_gain"):
            check_least(self, name, 0.0)
        check_least(self, "reset_every", 1)
        if self.size_gain >= 1 or (self.size_gain > 0 and self.share_codebooks):
            raise InputError(
                f"size_gain is {self.size_gain:g}; it is a share below 1, of levels that have a codebook each (share_codebooks false)."
            )
        if self.ema_decay >= 1:
            raise InputError(f"ema_decay is {self.ema_decay:g}; give a share below 1, such as 0.99.")


@dataclass
class CodecTrainingSettings:
    """The training loop of both codec stages (sidrec.codec.training)."""

    run_dir: Path = field(
        default=Path("outputs/codec"), metadata={"help": "Run directory; reads text/, writes the stage's own folder."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Train again where another training lies."})
    seed: int = field(default=0, metadata={"help": "What batches, weights and dropout are drawn from."})
    training_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=16, metadata={"help": "Rows of text a step, over all processes."})
    learning_rate: float = field(
        default=2e-3, metadata={"help": "Highest learning rate of AdamW; falls to 0 along a cosine."}
    )
    warmup_steps: int = field(default=50, metadata={"help": "Steps in which the learning rate rises.", "rare": True})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's weight decay.", "rare": True})
    gradient_clip: float = field(default=1.0, metadata={"help": "Largest norm of the gradient.", "rare": True})
    evaluate_every: int = field(default=250, metadata={"help": "Steps between measurements on valid, and checkpoints."})
    valid_rows: int = field(default=64, metadata={"help": "Rows of valid text that are measured.", "rare": True})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16; weights and codebooks stay in float32."})

    def __post_init__(self) -> None:
        check_least(self, "seed", 0)
        for name in ("training_steps", "batch_size", "evaluate_every", "valid_rows"):
            check_least(self, name, 1)
        check_least(self, "warmup_steps", 0)
        for name in ("weight_decay", "learning_rate", "gradient_clip"):
            check_least(self, name, 0.0)

"""The settings of each quantizer, beside those of the stage: `--quantizer` says which of them count."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sidrec.pipeline.errors import InputError


@dataclass
class KmeansSettings:
    """Residual k-means: the quantizer `rqkmeans`, the start of the trained ones, and the first levels of `rqkmeans_fsq`."""

    clusters: str = field(
        default="relaxed",
        metadata={
            "help": "`relaxed`: clusters of equal size first, then plain k-means from there; `plain`: plain k-means only; `balanced`: "
            "clusters of at most --slack times the equal size, by a price per code; `exact`: every cluster exactly the equal size."
        },
    )
    slack: float = field(
        default=1.0,
        metadata={"help": "balanced: the largest cluster may hold this many times N/K items; 1 = all about equal."},
    )
    balanced_iterations: int = field(
        default=20, metadata={"help": "k-means iterations per level with clusters of equal size."}
    )
    lloyd_iterations: int = field(
        default=5, metadata={"help": "Plain k-means iterations per level, after the balanced ones; for `plain` use 20."}
    )
    train_rows_per_code: int = field(
        default=256, metadata={"help": "Codebooks are learnt on at most this many items per code, drawn at random."}
    )

    def __post_init__(self) -> None:
        if self.clusters not in ("plain", "relaxed", "balanced", "exact"):
            raise InputError(
                f"clusters is {self.clusters!r}; it must be one of `plain`, `relaxed`, `balanced`, `exact`."
            )
        _check_range(self, "slack", 1.0)
        _check_range(self, "balanced_iterations", 1 if self.clusters in ("balanced", "exact") else 0)
        _check_range(self, "lloyd_iterations", 0)
        _check_range(self, "train_rows_per_code", 1)
        because = f"--clusters is {self.clusters}"
        _refuse_idle(self, "slack", self.clusters == "balanced", because)
        _refuse_idle(self, "balanced_iterations", self.clusters != "plain", because)
        _refuse_idle(self, "lloyd_iterations", self.clusters in ("plain", "relaxed"), because)


@dataclass
class TrainingSettings:
    """The trained quantizers: rqkmeans_plus, rqvae, vq, lora, fsq."""

    e_dim: int | None = field(
        default=None,
        metadata={
            "help": "Numbers per latent vector; rqkmeans_plus: as many as the item vector has; default for the others: 32."
        },
    )
    hidden_sizes: list[int] = field(
        default_factory=lambda: [512, 256],
        metadata={"help": "Hidden layers of the encoder; the decoder's are the reverse."},
    )
    decoder: str | None = field(
        default=None,
        metadata={
            "help": "rqkmeans_plus: `residual` (zq + MLP(zq), starts as the identity; its default) or `mlp` (as published, starts at "
            "random); the others have `mlp`."
        },
    )
    codebook_start: str = field(
        default="kmeans",
        metadata={
            "help": "`kmeans` (residual k-means of the latents; items go to the nearest code, without prices), `random`, or an .npz file "
            "with codebook_0, codebook_1, …"
        },
    )
    training_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=512, metadata={"help": "Items per step."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Highest learning rate of AdamW; falls to 0 along a cosine."}
    )
    warmup_steps: int = field(default=50, metadata={"help": "Steps in which the learning rate rises to its highest."})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's weight decay."})
    gradient_clip: float = field(
        default=1.0, metadata={"help": "Largest norm of the gradient; longer ones are shortened."}
    )
    reconstruction: str = field(default="mse", metadata={"help": "Reconstruction loss: `mse` or `l1`."})
    quantization_weight: float = field(default=1.0, metadata={"help": "Weight of codebook and commitment loss."})
    commitment: float | None = field(
        default=None,
        metadata={
            "help": "beta: weight of the commitment loss beside the codebook loss; default: 1 for rqkmeans_plus, 0.25 for the others."
        },
    )
    commitment_levels: str = field(
        default="all",
        metadata={"help": "Levels whose commitment reaches the encoder: `all`, or `first` (as MiniOneRec trains)."},
    )
    codebook_update: str = field(
        default="gradient",
        metadata={"help": "`gradient`, or `ema`: codes follow a moving average of their items (arXiv 2107.03312)."},
    )
    ema_decay: float = field(default=0.95, metadata={"help": "ema: share of the old average kept at each step."})
    reset_every: int = field(
        default=0,
        metadata={"help": "Every so many steps, codes in hardly any use move to residuals of the batch; 0 = never."},
    )
    dead_code_share: float = field(
        default=0.05, metadata={"help": "A code is dead when it has fewer items than this share of an equal share."}
    )
    shared_codebook: bool = field(
        default=False, metadata={"help": "rqvae: one codebook for all levels (arXiv 2203.01941)."}
    )
    sinkhorn_epsilon: float = field(
        default=0.0,
        metadata={
            "help": "Balance the codes of each training batch by Sinkhorn at this temperature; 0 = off, 0.01 is usual."
        },
    )
    sinkhorn_iterations: int = field(default=50, metadata={"help": "Iterations of Sinkhorn per batch and level."})
    rotation_trick: bool = field(
        default=False,
        metadata={
            "help": "Pass gradients through the quantization by rotation (arXiv 2410.06424), not straight through."
        },
    )
    diversity_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a loss that rewards even use of the codes (soft assignment); 0 = off; above 0.1 hurts."
        },
    )
    evaluate_every: int = field(
        default=200, metadata={"help": "Steps between measurements of loss, collisions and perplexity."}
    )
    keep: str = field(
        default="best_loss",
        metadata={
            "help": "Which measured state makes the SIDs: `best_loss` (lowest reconstruction loss), `best_collision` or `last`."
        },
    )

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                choices = ", ".join(f"`{choice}`" for choice in allowed if choice)
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {choices}.")
        if self.codebook_start not in ("kmeans", "random") and not str(self.codebook_start).endswith(".npz"):
            raise InputError(
                f"codebook_start is {self.codebook_start!r}; it must be `kmeans`, `random` or the path of an .npz file."
            )
        sizes = self.hidden_sizes
        if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise InputError(f"hidden_sizes is {sizes!r}; give a list of whole numbers of at least 1, such as 512 256.")
        if self.e_dim is not None:
            _check_range(self, "e_dim", 1)
        if self.commitment is not None:
            _check_range(self, "commitment", 0.0)
        for name, least in LEAST.items():
            _check_range(self, name, least)
        for name in ("learning_rate", "gradient_clip", "quantization_weight"):
            if getattr(self, name) == 0:
                raise InputError(f"{name} is 0, so nothing would be learnt; it must be above 0.")
        for name in ("ema_decay", "dead_code_share"):
            if getattr(self, name) >= 1:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be a share below 1.")
        if self.warmup_steps > self.training_steps:
            raise InputError(
                f"warmup_steps is {self.warmup_steps}, more than training_steps, {self.training_steps}; lower it."
            )
        _refuse_idle(self, "ema_decay", self.codebook_update == "ema", "codebook_update is `gradient`")
        _refuse_idle(self, "dead_code_share", self.reset_every > 0, "reset_every is 0")
        _refuse_idle(self, "sinkhorn_iterations", self.sinkhorn_epsilon > 0, "sinkhorn_epsilon is 0")


CHOICES: dict[str, tuple[str | None, ...]] = {
    "decoder": (None, "residual", "mlp"),
    "reconstruction": ("mse", "l1"),
    "commitment_levels": ("all", "first"),
    "codebook_update": ("gradient", "ema"),
    "keep": ("best_loss", "best_collision", "last"),
}
LEAST: dict[str, int | float] = {  # whole numbers where the least is one
    "training_steps": 1,
    "batch_size": 2,
    "learning_rate": 0.0,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "gradient_clip": 0.0,
    "quantization_weight": 0.0,
    "ema_decay": 0.0,
    "reset_every": 0,
    "dead_code_share": 0.0,
    "sinkhorn_epsilon": 0.0,
    "sinkhorn_iterations": 1,
    "diversity_weight": 0.0,
    "evaluate_every": 1,
}


def _check_range(settings: object, name: str, least: int | float) -> None:
    """Raise InputError when a field is no finite number of at least `least`, or no whole one where `least` is whole."""
    value = getattr(settings, name)
    whole = isinstance(least, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not least <= value < math.inf:
        kind = "whole number" if whole else "number"
        raise InputError(f"{name} is {value!r}; it must be a {kind} of at least {least:g}.")


def _refuse_idle(settings: Any, name: str, has_effect: bool, because: str) -> None:
    """Raise InputError for a setting that was changed and would do nothing."""
    default = next(item.default for item in fields(settings) if item.name == name)
    if not has_effect and getattr(settings, name) != default:
        raise InputError(f"{name} is set, but has no effect while {because}; leave it out.")


@dataclass
class LoraSettings:
    """Codebooks base + A B with a low-rank part that all sources share: the quantizer `lora`."""

    rank: int = field(default=8, metadata={"help": "r: columns of A and rows of B."})
    share_a: str = field(
        default="sources",
        metadata={"help": "A is shared by `sources` (one A a level) or by `all` (one A; needs equal level sizes)."},
    )
    base: str = field(default="trainable", metadata={"help": "The base codebooks: `trainable` or `frozen`."})
    penalty_reduction: str = field(
        default="mean",
        metadata={
            "help": "L2 and orthogonality penalties as `mean`, or as `sum` (which switches the low-rank part off)."
        },
    )
    l2_weight: float = field(default=1e-4, metadata={"help": "Weight of the L2 penalty on A and B."})
    orthogonality_weight: float = field(default=0.0, metadata={"help": "Weight of the penalty on A^T A - I."})
    relative_weight: float = field(
        default=0.0, metadata={"help": "Weight of the penalty max(0, |AB| / |base| - --relative_limit)."}
    )
    relative_limit: float = field(
        default=0.1, metadata={"help": "Share of the base's norm that A B may reach without penalty."}
    )
    layer0_multiplier: float = field(default=1.0, metadata={"help": "Factor on the penalties of the first level."})
    alignment_weight: float = field(
        default=0.0, metadata={"help": "Weight of InfoNCE between the sources' latents of an item; 0 = off."}
    )
    assignment: str = field(
        default="hard",
        metadata={"help": "Codes in training: `hard`, `soft` (weights over all codes) or `topk`; both end hard."},
    )
    top_k: int = field(default=4, metadata={"help": "topk: codes mixed per level."})
    temperature_start: float = field(
        default=1.0,
        metadata={
            "help": "soft, topk: temperature at the first step, in units of the gap between nearest and second code."
        },
    )
    temperature_end: float = field(default=0.01, metadata={"help": "soft, topk: temperature at the last step."})
    condition_on_previous: bool = field(
        default=False, metadata={"help": "Add W · (vector of the code before) to each level's residual; W starts at 0."}
    )
    inherit_levels: bool = field(
        default=False,
        metadata={"help": "A and B of a level are those of the level before plus a difference that is learnt."},
    )

    def __post_init__(self) -> None:
        choices = {
            "share_a": ("sources", "all"),
            "base": ("trainable", "frozen"),
            "penalty_reduction": ("mean", "sum"),
            "assignment": ("hard", "soft", "topk"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be {' or '.join(allowed)}.")
        for name in ("rank", "top_k"):
            _check_range(self, name, 1)
        weights = ("l2_weight", "orthogonality_weight", "relative_weight", "relative_limit", "alignment_weight")
        for name in (*weights, "layer0_multiplier", "temperature_start", "temperature_end"):
            _check_range(self, name, 0.0)
        if not 0 < self.temperature_end <= self.temperature_start:
            raise InputError(
                f"temperature_start is {self.temperature_start!r} and temperature_end {self.temperature_end!r}; the temperature must "
                "fall, and end above 0."
            )
        _refuse_idle(self, "top_k", self.assignment == "topk", f"assignment is `{self.assignment}`")
        for name in ("temperature_start", "temperature_end"):
            _refuse_idle(self, name, self.assignment != "hard", "assignment is `hard`")
        _refuse_idle(self, "relative_limit", self.relative_weight > 0, "relative_weight is 0")


MOST_FSQ_CODES = 65_536  # every code is a token of the language model


@dataclass
class FsqSettings:
    """Finite scalar quantization: the quantizer `fsq`, and the last level of `rqkmeans_fsq`."""

    fsq_levels: list[int] = field(
        default_factory=lambda: [8, 6, 5],
        metadata={
            "help": "Levels of each dimension of one token; the product is the number of its codes: 8 6 5 gives 240."
        },
    )
    fsq_tokens: int = field(default=3, metadata={"help": "fsq: tokens per item."})
    fsq_form: str = field(
        default="groups",
        metadata={"help": "fsq: tokens are `groups` of dimensions, or `residual` refinements of the same ones."},
    )

    def __post_init__(self) -> None:
        levels = self.fsq_levels
        if not isinstance(levels, list) or not levels or not all(type(n) is int and n >= 2 for n in levels):
            raise InputError(f"fsq_levels is {levels!r}; give a list of whole numbers of at least 2, such as 8 6 5.")
        if self.n_codes > MOST_FSQ_CODES:
            raise InputError(
                f"fsq_levels {' '.join(map(str, levels))} give {self.n_codes:,} codes, more than {MOST_FSQ_CODES:,}; lower them, or spread "
                "them over more --fsq_tokens."
            )
        if self.fsq_form not in ("groups", "residual"):
            raise InputError(f"fsq_form is {self.fsq_form!r}; it must be `groups` or `residual`.")
        if self.fsq_form == "residual" and 2 in levels:
            raise InputError(
                "fsq_levels holds 2, whose grid gets no finer from token to token; residual needs 3 or more."
            )
        _check_range(self, "fsq_tokens", 1)

    @property
    def n_codes(self) -> int:
        """K: the number of codes of one token, the product of its levels."""
        return math.prod(self.fsq_levels)


KINDS = (KmeansSettings, TrainingSettings, LoraSettings, FsqSettings)
USED_BY: dict[str, tuple[type, ...]] = {
    "rqkmeans": (KmeansSettings,),
    "rqkmeans_plus": (KmeansSettings, TrainingSettings),
    "rqvae": (KmeansSettings, TrainingSettings),
    "vq": (KmeansSettings, TrainingSettings),
    "lora": (KmeansSettings, TrainingSettings, LoraSettings),
    "fsq": (TrainingSettings, FsqSettings),
    "rqkmeans_fsq": (KmeansSettings, FsqSettings),
    "product": (KmeansSettings,),
    "coarse_to_fine": (KmeansSettings,),
    "random": (),
    "given": (),
}


@dataclass(frozen=True)
class QuantizerSettings:
    """The name of a quantizer and the settings of every kind; those it does not use are at their defaults."""

    quantizer: str
    kmeans: KmeansSettings
    training: TrainingSettings
    lora: LoraSettings
    fsq: FsqSettings

    def __post_init__(self) -> None:
        if self.quantizer not in USED_BY:
            raise InputError(f"quantizer is {self.quantizer!r}; it must be one of {', '.join(USED_BY)}.")
        for settings in (self.kmeans, self.training, self.lora, self.fsq):
            if type(settings) in USED_BY[self.quantizer]:
                continue
            default = type(settings)()
            for item in fields(settings):
                if getattr(settings, item.name) != getattr(default, item.name):
                    raise InputError(
                        f"{item.name} is set, but the quantizer {self.quantizer!r} does not use it; leave it out."
                    )

    @property
    def is_trained(self) -> bool:
        """Whether it is learnt in steps, with checkpoints."""
        return TrainingSettings in USED_BY[self.quantizer]

    def files(self) -> tuple[Path, ...]:
        """The files that the settings name: where the codebooks start, if that is a file."""
        start = self.training.codebook_start
        return (Path(start),) if start.endswith(".npz") else ()

    def recorded(self) -> dict[str, Any]:
        """What decides the result, for the manifest: the name, and the settings it uses."""
        used = [s for s in (self.kmeans, self.training, self.lora, self.fsq) if type(s) in USED_BY[self.quantizer]]
        return {"quantizer": self.quantizer} | {name: value for s in used for name, value in asdict(s).items()}

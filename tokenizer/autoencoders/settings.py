"""The settings of quantizers that are trained, in the groups that they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.ranges import check_choice, check_least, refuse_idle
from sidrec.tokenizer.kmeans.settings import KmeansSettings


@dataclass
class TrainingSettings:
    """The training loop (sidrec.tokenizer.autoencoders.training) and the sizes of encoder and decoder."""

    hidden_sizes: list[int] = field(
        default_factory=lambda: [512, 256],
        metadata={"help": "Hidden layers of the encoder; the decoder's are the reverse."},
    )
    dropout: float = field(
        default=0.0,
        metadata={
            "help": "Share of the inputs of every linear layer of encoder and decoder that each training step sets to 0; 0 = off.",
            "rare": True,
        },
    )
    batch_norm: bool = field(
        default=False,
        metadata={"help": "Batch normalisation after every hidden layer of encoder and decoder.", "rare": True},
    )
    training_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=512, metadata={"help": "Items per step."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Highest learning rate of AdamW; falls to 0 along a cosine."}
    )
    warmup_steps: int = field(
        default=50, metadata={"help": "Steps in which the learning rate rises to its highest.", "rare": True}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's weight decay.", "rare": True})
    gradient_clip: float = field(
        default=1.0,
        metadata={
            "help": "Largest norm of the gradient; longer ones are shortened.",
            "rare": True,
        },
    )
    reconstruction: str = field(default="mse", metadata={"help": "Reconstruction loss: `mse` or `l1`.", "rare": True})
    evaluate_every: int = field(
        default=200,
        metadata={"help": "Steps between measurements of loss, collisions and perplexity.", "rare": True},
    )
    keep: str = field(
        default="best_loss",
        metadata={
            "help": "Which measured state makes the SIDs: `best_loss` (lowest reconstruction loss), `best_collision` or `last`.",
            "rare": True,
        },
    )

    def __post_init__(self) -> None:
        sizes = self.hidden_sizes
        if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise InputError(f"hidden_sizes is {sizes!r}; give a list of whole numbers of at least 1, such as 512 256.")
        check_choice(self, "reconstruction", ("mse", "l1"))
        check_choice(self, "keep", ("best_loss", "best_collision", "last"))
        for name, least in (("training_steps", 1), ("batch_size", 2), ("warmup_steps", 0), ("evaluate_every", 1)):
            check_least(self, name, least)
        for name in ("learning_rate", "weight_decay", "gradient_clip", "dropout"):
            check_least(self, name, 0.0)
        check_share(self, "dropout")
        refuse_idle(self, "batch_norm", bool(sizes), "hidden_sizes is empty")
        for name in ("learning_rate", "gradient_clip"):
            refuse_zero(self, name)
        if self.warmup_steps > self.training_steps:
            raise InputError(
                f"warmup_steps is {self.warmup_steps}, more than training_steps, {self.training_steps}; lower it."
            )


@dataclass
class SoftSettings:
    """How many codes make a level's vector in training (sidrec.tokenizer.autoencoders.soft_assignment)."""

    assignment: str = field(
        default="hard",
        metadata={
            "help": "What a level's vector is in training: its nearest code (`hard`), or a mixture of all codes (`soft`) or of the best "
            "few (`topk`), which ends as one code."
        },
    )
    top_k: int = field(default=4, metadata={"help": "topk: codes mixed per level.", "rare": True})
    soft_weights: str = field(
        default="softmax",
        metadata={
            "help": "soft, topk: a code's share in the mixture, by its distance (`softmax`), or that and equal use of the codes in the "
            "batch (`sinkhorn`, slower); topk only: `uniform` (1/k each) or `learnt` (a weight a rank), with k falling from --top_k to 1.",
            "rare": True,
        },
    )
    soft_levels: list[int] = field(
        default_factory=list,
        metadata={
            "help": "soft, topk: levels that mix codes, 0 the first; the others are hard. Default: all.",
            "rare": True,
        },
    )
    temperature_start: float = field(
        default=1.0,
        metadata={
            "help": "softmax, sinkhorn: temperature at the first step, in units of the gap between nearest and second code.",
            "rare": True,
        },
    )
    temperature_end: float = field(
        default=0.01, metadata={"help": "softmax, sinkhorn: temperature at the last step.", "rare": True}
    )
    second_commitment_weight: float = field(
        default=0.0,
        metadata={
            "help": "soft, topk: weight of the second commitment term, the squared distance of a level's mixture to its nearest code; "
            "0 = off. With hard codes the term is 0 itself.",
            "rare": True,
        },
    )

    def __post_init__(self) -> None:
        check_choice(self, "assignment", ("hard", "soft", "topk"))
        check_choice(self, "soft_weights", ("softmax", "sinkhorn", "uniform", "learnt"))
        check_least(self, "top_k", 1)
        for name in ("temperature_start", "temperature_end", "second_commitment_weight"):
            check_least(self, name, 0.0)
        because = "assignment is `hard`: there a level leaves over what its code does, and the term is 0"
        refuse_idle(self, "second_commitment_weight", self.assignment != "hard", because)
        if not 0 < self.temperature_end <= self.temperature_start:
            raise InputError(
                f"temperature_start is {self.temperature_start!r} and temperature_end {self.temperature_end!r}; the temperature must "
                "fall, and end above 0."
            )
        levels = self.soft_levels
        if not isinstance(levels, list) or not all(isinstance(level, int) and level >= 0 for level in levels):
            raise InputError(f"soft_levels is {levels!r}; give a list of levels, 0 the first, such as 0 1.")
        if self.soft_levels and self.assignment == "hard":
            raise InputError("soft_levels is set, but has no effect while assignment is `hard`; leave it out.")
        refuse_idle(self, "top_k", self.assignment == "topk", f"assignment is `{self.assignment}`")
        refuse_idle(self, "soft_weights", self.assignment != "hard", "assignment is `hard`")
        counted = self.soft_weights in ("uniform", "learnt")
        if counted and self.assignment == "soft":
            raise InputError(
                f"soft_weights `{self.soft_weights}` mixes the nearest few codes; set assignment to `topk`."
            )
        for name in ("temperature_start", "temperature_end"):
            refuse_idle(self, name, self.assignment != "hard", "assignment is `hard`")
            refuse_idle(self, name, not counted, f"soft_weights is `{self.soft_weights}`")

    def check_soft_levels(self, level_sizes: list[int]) -> None:
        """Raise InputError for a soft level that does not exist, or one with fewer codes than are mixed."""
        levels = self.soft_levels or list(range(len(level_sizes)))
        if max(levels) >= len(level_sizes):
            raise InputError(f"soft_levels names level {max(levels)}, but the last level is {len(level_sizes) - 1}.")
        fewest = min(level_sizes[level] for level in levels)
        if self.assignment == "topk" and self.top_k > fewest:
            raise InputError(f"top_k {self.top_k} is more than the {fewest} codes of a level; lower it.")


@dataclass
class CodebookTrainingSettings(SoftSettings, KmeansSettings, TrainingSettings):
    """Residual codebooks that are trained with an encoder and a decoder (sidrec.tokenizer.autoencoders.autoencoder).

    The settings of k-means count where `codebook_init` is `kmeans`.
    """

    codebook_init: str = field(
        default="kmeans",
        metadata={
            "help": "What codebooks start as: `kmeans` (residual k-means of the latents; items go to the nearest code, without prices), "
            "`soft_kmeans` (from there, each item shared by all codes), `gmm` (the same, and codes of unequal weight), `random`, or an "
            ".npz file with codebook_0, codebook_1, …"
        },
    )
    quantization_weight: float = field(
        default=1.0, metadata={"help": "Weight of codebook and commitment loss.", "rare": True}
    )
    commitment_weight: float = field(
        default=0.25, metadata={"help": "beta: weight of the commitment loss beside the codebook loss."}
    )
    level_reduction: str = field(
        default="mean",
        metadata={
            "help": "Codebook and commitment loss are the levels' `mean` (as MiniOneRec), or their `sum` (as TIGER), which weighs them as "
            "many times as there are levels against the reconstruction.",
            "rare": True,
        },
    )
    coarse_weight: float = field(
        default=1.0,
        metadata={"help": "Factor on the codebook and commitment loss of the first level.", "rare": True},
    )
    fine_weight: float = field(
        default=1.0,
        metadata={"help": "Factor on the codebook and commitment loss of each level after the first.", "rare": True},
    )
    commitment_levels: str = field(
        default="all",
        metadata={
            "help": "Levels whose commitment reaches the encoder: `all`, or `first` (as MiniOneRec trains).",
            "rare": True,
        },
    )
    reset_every: int = field(
        default=0,
        metadata={"help": "Every so many steps, codes in hardly any use move to residuals of the batch; 0 = never."},
    )
    reset_to: str = field(
        default="residuals",
        metadata={
            "help": "Where dead codes move: `residuals` drawn from the batch, or `kmeans` of the batch's residuals, in which living codes "
            "stand still.",
            "rare": True,
        },
    )
    threshold_dead_code: float = field(
        default=0.05,
        metadata={
            "help": "A code is dead when it has fewer items than this share of an equal share (vector-quantize-pytorch's "
            "threshold_ema_dead_code is a number of items instead).",
            "rare": True,
        },
    )
    sinkhorn_epsilon: list[float] | float = field(
        default=0.0,
        metadata={
            "help": "Balance the codes of each training batch by Sinkhorn at this temperature, a number for all levels or one a level "
            "(distances lie in -1 to 1, so it has no unit); 0 = off, 0.01 is usual; 0 0 0.003 balances a third level only."
        },
    )
    sinkhorn_iterations: int = field(
        default=50, metadata={"help": "Iterations of Sinkhorn per batch and level.", "rare": True}
    )
    rotation_trick: bool = field(
        default=False,
        metadata={
            "help": "Pass gradients through the quantization by rotation (arXiv 2410.06424), not straight through.",
            "rare": True,
        },
    )
    diversity_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a loss that rewards even use of the codes (soft assignment); 0 = off; above 0.1 hurts.",
            "rare": True,
        },
    )
    diversity_form: str = field(
        default="entropy",
        metadata={
            "help": "Unevenness of the K shares of use p: `entropy` (log K - H(p), nats) or `variance` (sum of (p - 1/K)^2, near even use "
            "2/K of the other: raise --diversity_weight by K/2).",
            "rare": True,
        },
    )

    def __post_init__(self) -> None:
        KmeansSettings.__post_init__(self)
        TrainingSettings.__post_init__(self)
        SoftSettings.__post_init__(self)
        starts = ("kmeans", "soft_kmeans", "gmm", "random")
        if self.codebook_init not in starts and not str(self.codebook_init).endswith(".npz"):
            raise InputError(
                f"codebook_init is {self.codebook_init!r}; it must be `kmeans`, `soft_kmeans`, `gmm`, `random` or the path of an "
                ".npz file."
            )
        check_choice(self, "level_reduction", ("mean", "sum"))
        check_choice(self, "commitment_levels", ("all", "first"))
        for name in ("coarse_weight", "fine_weight"):
            check_least(self, name, 0.0)
        for name in ("quantization_weight", "commitment_weight", "threshold_dead_code"):
            check_least(self, name, 0.0)
        self._check_epsilons()
        for name, least in (("diversity_weight", 0.0), ("reset_every", 0), ("sinkhorn_iterations", 1)):
            check_least(self, name, least)
        refuse_zero(self, "quantization_weight")
        check_share(self, "threshold_dead_code")
        check_choice(self, "reset_to", ("residuals", "kmeans"))
        refuse_idle(self, "reset_to", self.reset_every > 0, "reset_every is 0")
        check_choice(self, "diversity_form", ("entropy", "variance"))
        refuse_idle(self, "diversity_form", self.diversity_weight > 0, "diversity_weight is 0")
        refuse_idle(self, "threshold_dead_code", self.reset_every > 0, "reset_every is 0")
        if self.balances and self.assignment != "hard":
            raise InputError(
                f"sinkhorn_epsilon is set, but training mixes codes (assignment `{self.assignment}`); leave it out."
            )
        balances = self.balances or self.soft_weights == "sinkhorn"
        refuse_idle(self, "sinkhorn_iterations", balances, "sinkhorn_epsilon is 0")

    def _check_epsilons(self) -> None:
        if isinstance(self.sinkhorn_epsilon, list) and len(self.sinkhorn_epsilon) == 1:
            self.sinkhorn_epsilon = self.sinkhorn_epsilon[0]
        if not isinstance(self.sinkhorn_epsilon, list):
            check_least(self, "sinkhorn_epsilon", 0.0)
        elif not self.sinkhorn_epsilon or not all(0 <= epsilon < float("inf") for epsilon in self.sinkhorn_epsilon):
            raise InputError(
                f"sinkhorn_epsilon is {self.sinkhorn_epsilon!r}; give one number of at least 0, or one a level."
            )

    def epsilon_of(self, level: int) -> float:
        """Sinkhorn's temperature on a level; 0: it is off."""
        return self.sinkhorn_epsilon[level] if isinstance(self.sinkhorn_epsilon, list) else self.sinkhorn_epsilon

    @property
    def balances(self) -> bool:
        """Whether Sinkhorn is on, on any level."""
        epsilons = self.sinkhorn_epsilon
        return any(epsilon > 0 for epsilon in (epsilons if isinstance(epsilons, list) else [epsilons]))

    def files(self) -> dict[str, Path]:
        """The .npz file that codebooks start from, if it is one."""
        return {"codebook_init": Path(self.codebook_init)} if self.codebook_init.endswith(".npz") else {}

    def check_epsilons(self, n_levels: int) -> None:
        """Raise InputError when Sinkhorn's temperatures are not as many as the levels."""
        if isinstance(self.sinkhorn_epsilon, list) and len(self.sinkhorn_epsilon) != n_levels:
            raise InputError(
                f"sinkhorn_epsilon has {len(self.sinkhorn_epsilon)} numbers, but there are {n_levels} levels; give one, or one a level."
            )

    def check_codebook_file(self, level_sizes: list[int], width: int) -> None:
        """Raise InputError when the file that codebooks start from does not hold a codebook [K, width] a level."""
        from sidrec.tokenizer.interchange import read_codebooks

        for path in CodebookTrainingSettings.files(self).values():
            read_codebooks(path, level_sizes, width)


@dataclass
class MovingAverageSettings:
    """Codebooks that may follow moving averages (sidrec.tokenizer.autoencoders.ema_codebook)."""

    codebook_update: str = field(
        default="gradient",
        metadata={"help": "`gradient`, or `ema`: codes follow a moving average of their items (arXiv 2107.03312)."},
    )
    ema_decay: float = field(
        default=0.95, metadata={"help": "ema: share of the old average that stays at each step.", "rare": True}
    )

    def __post_init__(self) -> None:
        check_choice(self, "codebook_update", ("gradient", "ema"))
        check_least(self, "ema_decay", 0.0)
        check_share(self, "ema_decay")
        refuse_idle(self, "ema_decay", self.codebook_update == "ema", "codebook_update is `gradient`")


@dataclass
class AutoencoderSettings(CodebookTrainingSettings, MovingAverageSettings):
    """Codebooks that are trained by gradient, or follow moving averages."""

    def __post_init__(self) -> None:
        CodebookTrainingSettings.__post_init__(self)
        MovingAverageSettings.__post_init__(self)
        if self.codebook_update == "ema" and self.assignment != "hard":
            raise InputError(
                f"codebook_update is `ema`, which follows whole items, but assignment `{self.assignment}` mixes codes; set "
                "codebook_update to `gradient`."
            )


@dataclass
class LatentSettings:
    """Latent vectors of a length of their own."""

    e_dim: int = field(default=32, metadata={"help": "Numbers per latent vector."})

    def __post_init__(self) -> None:
        check_least(self, "e_dim", 1)


def refuse_zero(settings: object, name: str) -> None:
    """Raise InputError when a field is 0."""
    if getattr(settings, name) == 0:
        raise InputError(f"{name} is 0, so nothing would be learnt; it must be above 0.")


def check_share(settings: object, name: str) -> None:
    """Raise InputError when a field is 1 or more."""
    if getattr(settings, name) >= 1:
        raise InputError(f"{name} is {getattr(settings, name)!r}; it must be a share below 1.")

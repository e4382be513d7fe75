"""Evaluation settings: what is measured, and how the baselines are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from sidrec.pipeline.errors import InputError

DEFAULT_MODELS = ("sft", "rl", "popularity", "recent_popularity", "item_knn", "markov", "sasrec")
BUNDLED = ("sft", "rl", "sft_blend", "rl_blend")  # of what is measured, what a bundle can hold
NOT_DECISIVE = ("run_dir", "other_runs", "overwrite")  # paths; the models of the other runs are inputs, by content


@dataclass
class EvaluateConfig:
    """Measure the models of a run directory on valid and test; write metrics, per-case ranks, a table and a report."""

    run_dir: Path = field(
        default=Path("outputs/demo"),
        metadata={"help": "Run directory; reads data/, sid/, sft/ and rl/ there, writes evaluation/."},
    )
    models: list[str] = field(
        default_factory=lambda: list(DEFAULT_MODELS),
        metadata={
            "help": "What to measure. Of the run: sft, rl; blended with a baseline of --blend_with: sft_blend, rl_blend, and sft_ensemble "
            "and rl_ensemble, which are the run's sft or rl, those of its further seeds and those of --other_runs together; sasrec_blend "
            "and bsarec_blend, to compare a blend with. Baselines: popularity, recent_popularity, item_knn, markov, markov_decay, slit "
            "(minutes for thousands of items, and 24 bytes for each pair of them), sasrec, sasrec_prefixes, sasrec_bce, "
            "sasrec_sampled, esasrec, bsarec."
        },
    )
    blend_with: list[str] = field(
        default_factory=lambda: ["item_knn"],
        metadata={
            "help": "Baselines that a blend may be made with, item_knn or slit or both; the one that is best on valid is used."
        },
    )
    seed: int = field(
        default=0,
        metadata={"help": "First seed of the neural baselines, and the seed of the bootstrap and of the tests."},
    )
    seeds: int = field(
        default=1,
        metadata={"help": "Trainings of each neural baseline, with seed, seed + 1, …; its row is their mean."},
    )
    other_runs: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "Run directories with the same data whose sft and rl were trained with other seeds; the rows of sft and rl are the "
            "means over this run and those."
        },
    )
    valid_cases: int = field(
        default=0,
        metadata={"help": "Most valid cases that every model is measured on, drawn by the seed; 0: all."},
    )
    test_cases: int = field(
        default=0,
        metadata={
            "help": "Most test cases, as --valid_cases; 0: all, as every published figure has them. For models that take seconds a case."
        },
    )
    tune_baselines: bool = field(
        default=False,
        metadata={
            "help": "Choose each neural baseline's settings from a grid of 4 by valid Recall@10; false: the "
            "grid's first. Item-KNN and recent popularity are always tuned on valid."
        },
    )
    sasrec_minutes: float = field(
        default=10.0,
        metadata={
            "help": "Most minutes of one training of a neural baseline; it stops sooner when valid Recall@10 stops rising. One that the "
            "limit ends is named under the table, and goes on when evaluated again with a higher limit."
        },
    )
    sasrec_epochs: int = field(
        default=30,
        metadata={
            "help": "Most passes of a neural baseline over the training sequences; its learning rate anneals over them."
        },
    )
    value_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the log with numbers, such as rating, price or dwell_seconds. value@10 is then the mean value, in its unit, "
            "that a value model predicts for the first ten items of the lists. None: values are not looked at."
        },
    )
    liked_from: float | None = field(
        default=None,
        metadata={
            "help": "An event is liked where its value_column is this or more, in the column's unit, such as 4 (stars). liked_recall@K is "
            "then Recall@K over the liked events alone. None: it is not measured."
        },
    )
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Measure again; the run's evaluation/ is replaced when the new one is whole. Trained baselines, in baselines/, are "
            "used again where data and settings are those they were trained with."
        },
    )

    def __post_init__(self) -> None:
        from sidrec.baselines.blend import EXPERTS  # they need torch, which --help does not wait for
        from sidrec.evaluation.models import MODELS

        unknown = [name for name in self.models if name not in MODELS]
        if unknown or not self.models:
            raise InputError(f"--models has {unknown or 'nothing'}; give one or more of {' '.join(MODELS)}.")
        self.models = [name for name in MODELS if name in self.models]
        unknown = [name for name in self.blend_with if name not in EXPERTS]
        if unknown or not self.blend_with:
            raise InputError(f"--blend_with has {unknown or 'nothing'}; give one or both of {' '.join(EXPERTS)}.")
        self.blend_with = [name for name in EXPERTS if name in self.blend_with]
        for flag, value in (("--sasrec_minutes", self.sasrec_minutes), ("--sasrec_epochs", self.sasrec_epochs)):
            if not value > 0:
                raise InputError(f"{flag} is {value}; it must be above 0.")
        for flag, value in (("--valid_cases", self.valid_cases), ("--test_cases", self.test_cases)):
            if value < 0:
                raise InputError(f"{flag} is {value}; it must not be negative.")
        if self.seeds < 1:
            raise InputError(f"--seeds is {self.seeds}; it must be 1 or more.")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; it must not be negative.")
        if self.liked_from is not None and self.value_column is None:
            raise InputError(f"--liked_from is {self.liked_from:g}, of no column; name it by --value_column.")
        if self.liked_from is not None and not math.isfinite(self.liked_from):
            raise InputError(f"--liked_from is {self.liked_from}; give a number in the column's unit.")

    @property
    def not_decisive(self) -> tuple[str, ...]:
        """Settings that do not decide the result: paths, and those that ask for nothing."""
        idle = [name for name in ("value_column", "liked_from") if getattr(self, name) is None]
        return (*NOT_DECISIVE, *idle, *([] if self.test_cases else ["test_cases"]))

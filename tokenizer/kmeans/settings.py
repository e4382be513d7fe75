"""The settings of residual k-means, shared by every quantizer that clusters."""

from __future__ import annotations

from dataclasses import dataclass, field

from sidrec.pipeline.ranges import check_choice, check_least, refuse_idle


@dataclass
class KmeansSettings:
    """How one level is clustered (sidrec.tokenizer.kmeans.residual_kmeans)."""

    clusters: str = field(
        default="relaxed",
        metadata={
            "help": "`relaxed`: clusters of equal size first, then plain k-means from there; `plain`: plain k-means only; `balanced`: "
            "clusters of at most --slack times the equal size, by a price per code; `exact`: the catalogue's items spread evenly over a "
            "level's codes, sizes differing by 1 at most (before equal IDs are told apart; items that come later follow the prices)."
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
        default=256,
        metadata={"help": "Codebooks are learnt on at most this many items per code, drawn at random.", "rare": True},
    )

    def __post_init__(self) -> None:
        check_choice(self, "clusters", ("plain", "relaxed", "balanced", "exact"))
        check_least(self, "slack", 1.0)
        check_least(self, "balanced_iterations", 1 if self.clusters in ("balanced", "exact") else 0)
        check_least(self, "lloyd_iterations", 0)
        check_least(self, "train_rows_per_code", 1)
        because = f"--clusters is {self.clusters}"
        refuse_idle(self, "slack", self.clusters == "balanced", because)
        refuse_idle(self, "balanced_iterations", self.clusters != "plain", because)
        refuse_idle(self, "lloyd_iterations", self.clusters in ("plain", "relaxed"), because)

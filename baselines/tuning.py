"""What was tried on valid to choose a model's settings, and how it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tuning:
    """What was tried and how it did. grid: the settings; values: the valid `metric` of each, seen items masked."""

    grid: list[dict[str, Any]]
    values: list[float]
    metric: str = "recall@10"

    @property
    def chosen(self) -> int:
        """The best one's index; of equal ones the first."""
        return int(np.argmax(self.values))

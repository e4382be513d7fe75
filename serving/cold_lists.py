"""Lists with cold items: those that were never taken in training, ranked among themselves and moved into the lists by one bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sidrec.decoding.cold_items import bias_of_share, joined
from sidrec.decoding.recommender import Recommendations
from sidrec.pipeline.errors import InputError
from sidrec.serving.bundle import Bundle

CALIBRATED_BY = 2000  # histories at most, evenly spaced


def both_lists(
    bundle: Bundle,
    histories: Sequence[np.ndarray],
    k: int,
    exclude_seen: bool = True,
    allowed: np.ndarray | None = None,
    diversity: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[Recommendations, Recommendations]:
    """The k best of the items that were taken in training, and the k best cold ones. Arguments as of `Recommender.recommend`."""
    allowed = np.ones(len(bundle.items), dtype=bool) if allowed is None else allowed
    asked = list(histories)
    others = bundle.of_one_model.recommend(
        asked, k, exclude_seen, progress, allowed=allowed & ~bundle.is_cold, diversity=diversity
    )
    cold = bundle.of_cold.recommend(asked, k, exclude_seen, allowed=allowed & bundle.is_cold, diversity=diversity)
    return others, cold


def recommend_with_cold(
    bundle: Bundle,
    histories: Sequence[np.ndarray],
    k: int,
    exclude_seen: bool,
    bias: float,
    allowed: np.ndarray | None = None,
    diversity: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Recommendations:
    """The k best items of every history by log π, to which `bias` is added for cold items. Others: as of `Recommender.recommend`."""
    others, cold = both_lists(bundle, histories, k, exclude_seen, allowed, diversity, progress)
    return joined(others, cold, bias, k, bundle.trie, diversity)


def calibrated_bias(
    bundle: Bundle,
    histories: Sequence[np.ndarray],
    k: int,
    share: float,
    exclude_seen: bool = True,
    allowed: np.ndarray | None = None,
) -> float:
    """The bias with which cold items have this share of the first k places, over CALIBRATED_BY of the histories at most.

    Raises InputError where no history has an item, nothing is cold, or cold items cannot have that share.
    """
    asked = [history for history in histories if len(history)]
    if not asked:
        raise InputError(
            "cold_share is a share of the lists of a log's users, and there is no log; name one with --log, or give --cold_bias, the "
            "number that a call with a log prints."
        )
    if not bundle.is_cold.any():
        raise InputError(
            "cold_share needs items that were never taken in training, and every item was; keep such by `sidrec prepare "
            "--keep_untaken_items true`, or add them by `sidrec add-items`."
        )
    chosen = np.unique(np.linspace(0, len(asked) - 1, min(len(asked), CALIBRATED_BY)).astype(np.int64))
    others, cold = both_lists(bundle, [asked[place] for place in chosen], k, exclude_seen, allowed)
    return bias_of_share(others.log_probs, cold.log_probs, share)

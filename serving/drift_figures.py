"""What drift is measured by: what users took of their lists, where their events lie beside the training's, and when training pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr

from sidrec.data.dataset import Dataset
from sidrec.evaluation.statistics import bootstrap_interval
from sidrec.serving.bundle import Bundle

K = 10
CHANCE_DRAWS = 20
MOST_COLD = 0.05  # of events, with items that the model never learnt
MOST_NEW_USERS = 0.25  # of users
MOST_DIVERGENCE = 0.05  # bits, beyond what chance gives


def shift_figures(events: pl.DataFrame, bundle: Bundle, dataset: Dataset | None, seed: int) -> dict[str, Any]:
    """Whose events these are, and of which items, beside the training's. events: user_id and item_id. dataset: of a run directory; without
    it nobody knows who is new."""
    places = pl.DataFrame({"item_id": bundle.items["item_id"], "place": np.arange(len(bundle.items))})
    items = events.join(places, on="item_id", how="left", maintain_order="left")["place"]
    known = items.drop_nulls().to_numpy().astype(np.int64)
    users, new_users = events["user_id"].unique(), None
    if dataset is not None:
        trained = dataset.interactions["user_id"].cast(pl.String).unique()
        new_users = float((~users.is_in(trained.implode())).mean())  # type: ignore[arg-type]
    return {
        "events": len(events),
        "users": len(users),
        "unknown_share": items.null_count() / len(events),
        "cold_share": int((bundle.training_counts[known] == 0).sum()) / len(events),
        "new_user_share": new_users,
        **popularity_shift(bundle.training_counts, np.bincount(known, minlength=len(bundle.items)), seed),
    }


def popularity_shift(trained: np.ndarray, now: np.ndarray, seed: int) -> dict[str, float | None]:
    """How item popularity moved from training to now. trained, now: int [N], how often each item was taken; None where nothing was.

    divergence_bits: the Jensen-Shannon divergence of the two distributions over items, 0 to 1. divergence_by_chance_bits: its mean over
    draws of as many events from the training's distribution. rank_correlation: Spearman's, over all items.
    """
    assert trained.shape == now.shape, f"{trained.shape} and {now.shape} must be [N] both"
    total = int(now.sum())
    if not total or not trained.sum():
        return dict.fromkeys(("divergence_bits", "divergence_by_chance_bits", "rank_correlation"))
    before = trained / trained.sum()
    drawn = np.random.default_rng(seed).multinomial(total, before, size=CHANCE_DRAWS)
    correlation = float(spearmanr(trained, now).statistic) if len(set(trained)) > 1 and len(set(now)) > 1 else None
    return {
        "divergence_bits": divergence(before, now),
        "divergence_by_chance_bits": float(np.mean([divergence(before, each) for each in drawn])),
        "rank_correlation": correlation,
    }


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """The Jensen-Shannon divergence in bits of two distributions, given up to a factor. p, q: [N]."""
    return float(jensenshannon(p, q, base=2) ** 2)


def list_figures(events: pl.DataFrame, lists: pl.DataFrame, within: float, seed: int) -> dict[str, Any]:
    """What users took after their lists.

    recall@10: over the lists of users that took anything within the time after them, the mean share of what they took that stands in the
    list's first 10; each item counts once. recall@10_early, recall@10_late: of the earlier and the later half of these lists, beside the
    interval of the change. lists_without_reason: the share that needs no reason, since there was a history and k items came.
    """
    by_user = events.sort("received_at").group_by("user_id").agg("received_at", "item_id")
    of_user = {user: (np.array(times), items) for user, times, items in by_user.iter_rows()}
    recalls, owners = [], []
    for user, time, items in lists.select("user_id", "time", "items").iter_rows():
        times, all_items = of_user.get(user, (np.zeros(0), []))
        first, last = np.searchsorted(times, time, "left"), np.searchsorted(times, time + within, "right")
        after = set(all_items[first:last])
        if after:
            recalls.append(len(after & set(items[:K])) / len(after))
            owners.append(user)
    whole = lists.filter((pl.col("history").list.len() > 0) & (pl.col("items").list.len() >= pl.col("k")))
    figures: dict[str, Any] = {
        "lists": len(lists),
        "lists_followed": len(recalls),
        "lists_without_reason": len(whole) / len(lists) if len(lists) else None,
    }
    return figures | halves(np.array(recalls), np.array(owners), seed)


def halves(recalls: np.ndarray, users: np.ndarray, seed: int) -> dict[str, float | None]:
    """Recall@10 of all lists, oldest first, and how the later half differs from the earlier one; None where there are too few. The interval
    is of independent halves: users are drawn in each."""
    names = ("recall@10", "recall@10_early", "recall@10_late", "recall@10_change_low", "recall@10_change_high")
    if len(recalls) < 2:
        return dict.fromkeys(names) | {"recall@10": float(recalls[0]) if len(recalls) else None}
    middle = len(recalls) // 2
    early, late = recalls[:middle], recalls[middle:]
    low_early, high_early = bootstrap_interval(early, seed, users=users[:middle])
    low_late, high_late = bootstrap_interval(late, seed, users=users[middle:])
    change = late.mean() - early.mean()
    below = np.hypot(late.mean() - low_late, high_early - early.mean())
    above = np.hypot(high_late - late.mean(), early.mean() - low_early)
    values = (recalls.mean(), early.mean(), late.mean(), change - below, change + above)
    return dict(zip(names, map(float, values), strict=True))


def reasons_to_train(figures: dict[str, Any]) -> list[str]:
    """Training further or anew pays where one of these is so; none of them: it can wait."""
    reasons = []
    if figures["recall@10_change_high"] is not None and figures["recall@10_change_high"] < 0:
        reasons.append("Recall@10 of the later lists is below that of the earlier ones, beyond its interval")
    if figures["cold_share"] + figures["unknown_share"] > MOST_COLD:
        reasons.append(f"more than {MOST_COLD:.0%} of events are of items that the model never learnt")
    if figures["new_user_share"] is not None and figures["new_user_share"] > MOST_NEW_USERS:
        reasons.append(f"more than {MOST_NEW_USERS:.0%} of users are new")
    if figures["divergence_bits"] is not None:
        beyond = figures["divergence_bits"] - figures["divergence_by_chance_bits"]
        if beyond > MOST_DIVERGENCE:
            reasons.append(f"item popularity moved by more than {MOST_DIVERGENCE:g} bits beyond chance")
    return reasons


def in_words(figures: dict[str, Any]) -> list[str]:
    """A line each, the last one whether training pays."""

    def number(name: str, form: str = ".4f") -> str:
        return "not known" if figures[name] is None else format(figures[name], form)

    pays = (
        f"training pays: {'; '.join(figures['reasons'])}"
        if figures["retrain"]
        else "training can wait: nothing moved beyond the limits"
    )
    return [
        f"{figures['events']:,} events of {figures['users']:,} users; new users {number('new_user_share', '.1%')}, events on cold items "
        f"{number('cold_share', '.1%')}, on items that the catalogue lacks {number('unknown_share', '.1%')}",
        f"item popularity: {number('divergence_bits')} bits from training's (Jensen-Shannon; {number('divergence_by_chance_bits')} by "
        f"chance), rank correlation {number('rank_correlation', '.3f')}",
        f"{figures['lists']:,} lists, {number('lists_without_reason', '.1%')} of them whole and by the model; Recall@10 of the "
        f"{figures['lists_followed']:,} that events followed {number('recall@10')}, earlier half {number('recall@10_early')}, later half "
        f"{number('recall@10_late')}",
        pays,
    ]

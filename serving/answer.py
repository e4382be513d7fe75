"""The answer to a request: histories in, rows out. The command, the Python interface and a service all give what this module gives.

A list is short only with its reason. A history without items is answered by what was most taken in training of what may be recommended.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from sidrec.decoding.diversity import within
from sidrec.decoding.drawn_lists import check_temperature, drawn_lists
from sidrec.decoding.item_indices import at_least_one
from sidrec.decoding.recommender import Recommendations
from sidrec.pipeline.errors import InputError
from sidrec.serving.bundle import Bundle
from sidrec.serving.cold_lists import recommend_with_cold

USERS_TOGETHER = 1024  # their rows are in memory at once
MOST_BIAS = 1e6  # nats, which leaves no item its place
NO_HISTORY = "no history"
COLUMNS = {
    "user_id": pl.String,
    "rank": pl.Int32,
    "item_id": pl.String,
    "title": pl.String,
    "score": pl.Float32,
    "sid": pl.String,
    "cold": pl.Boolean,
    "reason": pl.String,
}


@dataclass(frozen=True)
class Question:
    """What is asked about every history: the k best items.

    keep_seen: items of the history may be recommended. allowed: bool [N], the items that may (`sidrec.serving.item_filter`); None: all.
    diversity: the most items of a list that may share their first code. temperature: lists are drawn at random instead of being the best
    ones (`sidrec.decoding.drawn_lists`), of all items. ahead: k steps instead of k candidates: each item joins the history
    before the next one is asked for. Raises InputError for a k or diversity below 1, and for both of the last two.
    """

    k: int = 10
    keep_seen: bool = False
    allowed: np.ndarray | None = None
    diversity: int | None = None
    ahead: bool = False
    cold_bias: float | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        at_least_one(self.k, "k")
        if self.cold_bias is not None and not abs(self.cold_bias) <= MOST_BIAS:
            raise InputError(f"cold_bias={self.cold_bias} is no number of nats; leave it out, or give one such as 2.5.")
        if self.temperature is not None:
            check_temperature(self.temperature)
            if self.allowed is not None or self.diversity is not None or self.ahead or self.cold_bias is not None:
                raise InputError(
                    "a list with a temperature is drawn from all items, so that other policies can be judged by it; leave filters, "
                    "diversity, cold_bias and steps ahead out, or the temperature."
                )
        if self.diversity is not None:
            at_least_one(self.diversity, "diversity")
            if self.ahead:
                raise InputError(
                    "items ahead follow one another, so diversity does not apply to them; leave one of both out."
                )


def answer(
    bundle: Bundle,
    histories: Sequence[np.ndarray],
    question: Question,
    users: Sequence[str | None] | None = None,
    why_empty: Sequence[str | None] | None = None,
    progress: Callable[[int], object] | None = None,
) -> pl.DataFrame:
    """Rows of COLUMNS, the histories in their order, each best first.

    score: log probability of the item after the history (ahead: after the items before it, too), without cold_bias; null where there is no
    history. cold: the item was never taken in training. reason: null, or why the list is short or not the model's. A history without any
    item has one row, of which rank and item are null. Drawn lists have one more column, `propensity`: the probability of the slot's item
    given those above it; null where the list was not drawn.

    histories: item indices, oldest first. users: of each history, for user_id. why_empty: of each history, what is said where it is empty;
    NO_HISTORY. progress: called with a number of histories that are answered.
    """
    users, why_empty = users or [None] * len(histories), why_empty or [None] * len(histories)
    items = np.full((len(histories), longest_list(bundle, question)), -1, dtype=np.int64)
    scores = np.full(items.shape, np.nan, dtype=np.float32)
    propensities = None if question.temperature is None else np.full(items.shape, np.nan)
    with_items = [row for row, history in enumerate(histories) if len(history)]
    if with_items:
        asked = [histories[row] for row in with_items]
        if propensities is None:
            lists = (_steps if question.ahead else _lists)(bundle, asked, question, progress)
        else:
            lists, propensities[with_items] = _drawn(bundle, asked, question, progress)
        items[with_items], scores[with_items] = lists.items, lists.log_probs
    empty = [row for row, history in enumerate(histories) if not len(history)]
    if empty:
        most_taken = popular_items(bundle, question)
        items[empty, : len(most_taken)] = most_taken
        if progress is not None:
            progress(len(empty))
    why = reasons(bundle, histories, items, question, why_empty)
    return _rows(bundle, histories, items, scores, users, why, propensities)


def answers(
    bundle: Bundle, asked: pl.DataFrame, question: Question, progress: Callable[[int], object] | None = None
) -> Iterator[pl.DataFrame]:
    """`answer` for many, USERS_TOGETHER at a time. asked: user_id, history (lists of item indices, null for none) and why_empty."""
    for part in asked.iter_slices(USERS_TOGETHER):
        lengths = part["history"].list.len().fill_null(0)
        together = part["history"].filter(lengths > 0).explode().to_numpy(writable=True)
        histories = np.split(together, lengths.cum_sum().to_numpy()[:-1])
        yield answer(bundle, histories, question, part["user_id"].to_list(), part["why_empty"].to_list(), progress)


def popular_items(bundle: Bundle, question: Question) -> np.ndarray:
    """int64 [k or fewer]: of what may be recommended, what was most taken in training."""
    items = bundle.most_taken[may_be_recommended(bundle, question)[bundle.most_taken]]
    if question.diversity is None:
        return items[: question.k]
    row = torch.from_numpy(items)[None].to(bundle.trie.device)
    best = within(bundle.trie, row, torch.zeros(row.shape, device=row.device), question.k, question.diversity)[0][0]
    popular: np.ndarray = best[best >= 0].cpu().numpy()
    return popular


def longest_list(bundle: Bundle, question: Question) -> int:
    """The most items that a list can have: k, or where each item comes once, no more than there are."""
    repeats = question.ahead and question.keep_seen
    return question.k if repeats else min(question.k, bundle.trie.n_items)


def may_be_recommended(bundle: Bundle, question: Question) -> np.ndarray:
    """bool [N]: the items of the catalogue at this moment that the question allows."""
    in_catalogue = np.zeros(len(bundle.items), dtype=bool)
    items = bundle.trie.item_of_leaf[:].cpu().numpy()
    in_catalogue[items[items < len(in_catalogue)]] = True
    return in_catalogue if question.allowed is None else in_catalogue & question.allowed


def _lists(
    bundle: Bundle, histories: list[np.ndarray], question: Question, progress: Callable[[int], object] | None
) -> Recommendations:
    return _best(bundle, histories, longest_list(bundle, question), question, progress)


def _best(
    bundle: Bundle,
    histories: list[np.ndarray],
    k: int,
    question: Question,
    progress: Callable[[int], object] | None = None,
) -> Recommendations:
    """The k best items of every history."""
    seen, allowed, diversity = not question.keep_seen, question.allowed, question.diversity
    if question.cold_bias is None:
        return bundle.recommender.recommend(histories, k, seen, progress, allowed=allowed, diversity=diversity)
    return recommend_with_cold(bundle, histories, k, seen, question.cold_bias, allowed, diversity, progress)


def _drawn(
    bundle: Bundle, histories: list[np.ndarray], question: Question, progress: Callable[[int], object] | None
) -> tuple[Recommendations, np.ndarray]:
    """Lists, and their propensities, [B, k]. The draws are new each time: who serves the same user twice may show two lists."""
    assert question.temperature is not None
    generator = torch.Generator().manual_seed(secrets.randbits(63))
    k = longest_list(bundle, question)
    drawn = drawn_lists(bundle.of_one_model, histories, k, not question.keep_seen, question.temperature, generator)
    if progress is not None:
        progress(len(histories))
    return drawn.lists, drawn.propensities


def _steps(
    bundle: Bundle, histories: list[np.ndarray], question: Question, progress: Callable[[int], object] | None
) -> Recommendations:
    """The best item, then the best one after it, and so on."""
    paths, rows, longest = list(histories), np.arange(len(histories)), longest_list(bundle, question)
    items = np.full((len(histories), longest), -1, dtype=np.int64)
    log_probs = np.full(items.shape, -np.inf, dtype=np.float32)
    for step in range(longest):
        best = _best(bundle, [paths[row] for row in rows], 1, question)
        goes_on = best.items[:, 0] >= 0
        rows = rows[goes_on]
        items[rows, step], log_probs[rows, step] = best.items[goes_on, 0], best.log_probs[goes_on, 0]
        for row in rows:
            paths[row] = np.append(paths[row], items[row, step])
        if not len(rows):
            break
    if progress is not None:
        progress(len(histories))
    return Recommendations(items, log_probs, (items >= 0).sum(1))


def _rows(
    bundle: Bundle,
    histories: Sequence[np.ndarray],
    items: np.ndarray,
    scores: np.ndarray,
    users: Sequence[str | None],
    reason: list[str | None],
    propensities: np.ndarray | None,
) -> pl.DataFrame:
    """items, scores, propensities: [B, k]."""
    listed = items >= 0
    listed[~listed.any(axis=1), 0] = True  # the row that says why there is none
    row, place = listed.nonzero()
    item = pl.Series(items[row, place])
    item = item.set(item < 0, None)
    columns = {
        "row": row,
        "rank": pl.Series(place + 1).set(item.is_null(), None),
        "score": pl.Series(scores[row, place]).set(item.is_null(), None).fill_nan(None),
    }
    of_history = pl.DataFrame(
        {"user_id": pl.Series(users, dtype=pl.String), "reason": pl.Series(reason, dtype=pl.String)}
    )
    frame = pl.concat(
        [pl.DataFrame(columns), bundle.shelf.select(pl.all().gather(item)), of_history[row]], how="horizontal"
    )
    frame = frame.select(pl.col(name).cast(dtype) for name, dtype in COLUMNS.items())
    if propensities is None:
        return frame
    return frame.with_columns(propensity=pl.Series(propensities[row, place]).fill_nan(None))


def reasons(
    bundle: Bundle,
    histories: Sequence[np.ndarray],
    items: np.ndarray,
    question: Question,
    why_empty: Sequence[str | None],
) -> list[str | None]:
    """Of every history: None, or why its list, [k] of `items` [B, k], has fewer than k items or is of what was most taken."""
    counts = (items >= 0).sum(axis=1)
    sentences: list[str | None] = [None] * len(histories)
    special = (counts < question.k) | [not len(history) for history in histories]
    for row in np.flatnonzero(special).tolist():
        said = []
        if not len(histories[row]):
            said.append(f"{why_empty[row] or NO_HISTORY}, so what was most taken in training")
        if counts[row] < question.k:
            said.append(why_short(bundle, histories[row], int(counts[row]), question))
        sentences[row] = "; ".join(said)
    return sentences


def why_short(bundle: Bundle, history: np.ndarray, shown: int, question: Question) -> str:
    """Why a list has fewer items than were asked for."""
    may = may_be_recommended(bundle, question)
    n_items = bundle.trie.n_items
    words = [f"the catalogue has {n_items:,} item{'' if n_items == 1 else 's'}"]
    if question.allowed is not None:
        words.append(f"{may.sum():,} of them pass{'es' if may.sum() == 1 else ''} the filter")
    seen = 0 if question.keep_seen else int(may[np.unique(history[history < len(may)])].sum())
    if seen:
        words.append(f"those of the history ({seen:,}) are left out unless keep_seen")
    if question.diversity is not None:
        words.append(f"at most {question.diversity:,} may share a first code")
    return f"{shown:,} of the {question.k:,} asked for: {', '.join(words)}"

"""Recommending from Python, with your own ids: `from sidrec import Recommender`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sidrec.pipeline.errors import InputError
from sidrec.serving.about import ABOUT
from sidrec.serving.answer import COLUMNS, Question, answers
from sidrec.serving.cold_lists import calibrated_bias
from sidrec.serving.history import asked_of_histories, items_of_ids
from sidrec.serving.item_filter import allowed_by, allowed_by_sql
from sidrec.serving.source import Source


class Recommender:
    """A bundle, or a run directory's model, asked by user ids and item ids.

    `Recommender.load("bundle").recommend(histories=[["b0056", "b0361"]], k=5)`

    bundle: what answers. by_user: user_id and history of every user of the log.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.bundle = source.bundle
        self.by_user = source.by_user

    @classmethod
    def load(cls, folder: str | Path, log: str | Path | None = None, model: str | None = None) -> Recommender:
        """A bundle's folder, or a run directory.

        log: CSV or Parquet file with user_id, item_id and timestamp, the users' histories; left out, a run directory has its own, a bundle
        none. model: of a run directory: sft, rl, or a blend that was evaluated; left out, rl where it is finished, else sft. Raises
        InputError for what is missing, changed or does not fit.
        """
        path, is_bundle = Path(folder), (Path(folder) / ABOUT).is_file()
        if is_bundle and model is not None:
            raise InputError(f"{path} is a bundle, which holds one model; leave model={model!r} out.")
        return cls(Source.open(path, None if log is None else Path(log), model, is_bundle))

    def recommend(
        self,
        users: Sequence[str] | None = None,
        histories: Sequence[Sequence[str]] | None = None,
        k: int = 10,
        where: str | Sequence[Mapping[str, Any]] | None = None,
        keep_seen: bool = False,
        diversity: int | None = None,
        ahead: bool = False,
        cold_bias: float | None = None,
    ) -> pl.DataFrame:
        """user_id, rank, item_id, title, score (log probability), sid, cold, reason: k rows a user or history, best first.

        users: ids of the log, each answered once; an unknown one gets what was most taken in training. histories: item ids, oldest first;
        their user_id is their number, from 0. where: a SQL expression of the items' columns, or conditions (`sidrec.serving.item_filter`).
        keep_seen, diversity, ahead, cold_bias: as of `sidrec.serving.answer.Question`. reason says why a list is short. Raises InputError
        for an unknown item, a where that does not fit, and numbers below 1.
        """
        if (users is None) == (histories is None):
            raise InputError("give users=[…] or histories=[[…], …], one of the two.")
        if isinstance(users, str) or isinstance(histories, str):
            raise InputError("users and histories are lists: users=['ann'], histories=[['tea-3', 'cup-1']].")
        items, allowed = self.bundle.items, None
        if where is not None:
            allowed = allowed_by_sql(items, where) if isinstance(where, str) else allowed_by(items, where)
        question = Question(k, keep_seen, allowed, diversity, ahead, cold_bias)
        asked = self._asked_of(histories or []) if users is None else self._source.of_users([*map(str, users)])
        parts = list(answers(self.bundle, asked, question))
        return pl.concat(parts) if parts else pl.DataFrame(schema=COLUMNS)

    def cold_bias(self, share: float, k: int = 10) -> float:
        """The `cold_bias` of `recommend` with which items that were never taken in training have this share of the first k places of the
        log's users. Raises InputError where there is no log, no such item, or not so many of them."""
        histories = [np.array(history, dtype=np.int64) for history in self.by_user["history"].to_list()]
        return calibrated_bias(self.bundle, histories, k, share)

    @property
    def ids(self) -> pl.DataFrame:
        """The three names of every item: item_id, sid as it is written, tokens (its ids in the model's vocabulary); item i in row i."""
        first_tokens = np.array(self.bundle.first_recommender.renderer.vocabulary.first_tokens)
        tokens = pl.Series("tokens", (self.bundle.sids.codes + first_tokens).tolist(), dtype=pl.List(pl.Int64))
        return self.bundle.shelf.select("item_id", "sid").with_columns(tokens)

    def _asked_of(self, histories: Sequence[Sequence[str]]) -> pl.DataFrame:
        index_of, dataset = self.bundle.index_of, self._source.dataset
        indices: list[np.ndarray] = []
        for number, history in enumerate(histories):
            if isinstance(history, str):
                raise InputError(f"history {number} is the text {history!r}; give a list of item ids.")
            indices.append(items_of_ids(index_of, [str(item) for item in history], dataset))
        return asked_of_histories(indices, [str(number) for number in range(len(indices))])

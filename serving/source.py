"""What is asked: a bundle, or a run directory's model as one, and the histories of users where a log is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sidrec.data.dataset import Dataset
from sidrec.data.filters import why_left_out
from sidrec.pipeline.errors import InputError
from sidrec.serving.bundle import Bundle, last_trained
from sidrec.serving.history import ASKED, histories_by_user, histories_of_log


@dataclass(frozen=True)
class Source:
    """by_user: user_id and history of every user of the log. log: where it lies, None where there is none. dataset: of a run directory.
    unknown_rows: rows of the log whose item the catalogue has not."""

    bundle: Bundle
    by_user: pl.DataFrame
    log: Path | None
    dataset: Dataset | None
    unknown_rows: int = 0

    @classmethod
    def open(cls, folder: Path, log: Path | None, model: str | None, is_bundle: bool) -> Source:
        """Load a bundle, or a run directory's model by its name (None: the last one trained).

        log: a file with the users' histories in place of the run's. Raises InputError for what is missing, changed or does not fit.
        """
        if is_bundle:
            dataset, bundle = None, Bundle.load(folder)
        else:
            dataset = Dataset.load(folder)
            bundle = Bundle.of_run(folder, model or last_trained(folder), dataset)
        if log is not None:
            by_user, unknown_rows = histories_of_log(log, bundle.items)
            return cls(bundle, by_user, log, dataset, unknown_rows)
        if dataset is not None:
            return cls(bundle, histories_by_user(dataset.interactions), folder / "data", dataset)
        nobody = pl.DataFrame(schema={name: ASKED[name] for name in ("user_id", "history")})
        return cls(bundle, nobody, None, None)

    def require_user(self, user: str) -> None:
        """Raise InputError unless the log has the user."""
        if (self.by_user["user_id"] == user).any():
            return
        reason = self._why_unknown([user])[0]
        if self.log is None or "was left out" in reason:
            raise InputError(f"--user {user}: {reason}.")
        known = ", ".join(self.by_user["user_id"].head(3).to_list())
        raise InputError(f"--user {user}: no such user_id in {self.log}; the first ones are {known}.")

    def of_users(self, users: Sequence[str]) -> pl.DataFrame:
        """What is asked about users of the log (see `sidrec.serving.history`), each once, in this order; of an unknown one it is said why
        there is no history."""
        wanted = pl.DataFrame({"user_id": pl.Series(list(dict.fromkeys(users)), dtype=pl.String)})
        asked = wanted.join(self.by_user, on="user_id", how="left", maintain_order="left")
        unknown = asked.filter(pl.col("history").is_null())["user_id"]
        reasons = pl.DataFrame(
            {"user_id": unknown, "why_empty": self._why_unknown(unknown.to_list())}, schema_overrides=ASKED
        )
        asked = asked.join(reasons, on="user_id", how="left", maintain_order="left")
        without_items = pl.col("history").list.len() == 0
        return asked.with_columns(
            why_empty=pl.when(without_items)
            .then(pl.lit("the catalogue has no item of this user's"))
            .otherwise(pl.col("why_empty").cast(pl.String))
        ).select(list(ASKED))

    def notes(self, asked: pl.DataFrame) -> list[str]:
        """Sentences about what was left out or answered otherwise. asked: of `of_users`."""
        notes = []
        unknown = asked.filter(pl.col("why_empty").is_not_null())
        if len(unknown):
            one = len(unknown) == 1
            notes.append(
                f"{len(unknown):,} of {len(asked):,} users {'has' if one else 'have'} no history, such as {unknown['user_id'][0]!r} "
                f"({unknown['why_empty'][0]}); {'its list is' if one else 'their lists are'} what was most taken in training."
            )
        if self.unknown_rows:
            rows = f"{self.unknown_rows:,} row{'' if self.unknown_rows == 1 else 's'}"
            notes.append(f"{self.log}: {rows} of items that the catalogue has not are left out of the histories.")
        return notes

    def _why_unknown(self, users: list[str]) -> list[str]:
        """Of users without a history, why there is none."""
        if self.log is None:
            return ["there is no log"] * len(users)
        if self.dataset is None or self.log != self.dataset.folder:
            return ["this user is not in the log"] * len(users)
        left_out = self.dataset.left_out.filter(pl.col("kind") == "user", pl.col("id").is_in(users))
        known = set(left_out["id"])
        return [
            f"this user {why_left_out(left_out, self.dataset.info, 'user', user) if user in known else 'is not in the data'}"
            for user in users
        ]

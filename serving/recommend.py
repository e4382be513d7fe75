"""What would these users take next?

sidrec recommend --run_dir outputs/ml-100k --user 196
sidrec recommend --run_dir outputs/ml-100k --history "toy story" "fargo"
sidrec recommend --run_dir outputs/ml-100k --items 50,181 --model sft_blend
sidrec recommend --run_dir outputs/ml-100k --all_users --output lists.parquet
sidrec recommend --bundle bundle --log log.csv --users users.txt --where "genre = 'sea adventure'" --output lists.csv

A blend is the one that `sidrec evaluate` put together on valid, with the memory that it stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.output_path import check_output
from sidrec.pipeline.screen import Screen

if TYPE_CHECKING:
    import polars as pl

    from sidrec.serving.bundle import Bundle
    from sidrec.serving.source import Source

RUN_DIR = Path("outputs/demo")
MODELS = ("sft", "rl", "sft_blend", "rl_blend", "sft_ensemble", "rl_ensemble")
MOST_AHEAD = 10_000  # items of --next, each of which is a search
OF_LOG, OF_ITEMS = (
    ("user", "users", "all_users"),
    ("items", "titles", "history"),
)  # who is asked about: by a log, or by items


@dataclass
class RecommendConfig:
    """Recommend items to users of the log, or to whoever has taken the items named."""

    run_dir: Path | None = field(
        default=None, metadata={"help": f"Run directory with a trained model. Left out, without --bundle: {RUN_DIR}."}
    )
    bundle: Path | None = field(
        default=None,
        metadata={
            "help": "Folder that `sidrec bundle` has written, or a copy of it, asked instead of a run directory."
        },
    )
    log: Path | None = field(
        default=None,
        metadata={
            "help": "CSV or Parquet file with user_id, item_id and timestamp: the users' histories, in place of the run directory's."
        },
    )
    user: str | None = field(default=None, metadata={"help": "A user_id of the log; the history is all that they did."})
    users: Path | None = field(
        default=None,
        metadata={
            "help": "File of user ids: a column user_id of a .csv or .parquet, else one id a line. An unknown user gets what is popular."
        },
    )
    all_users: bool = field(default=False, metadata={"help": "Ask about every user of the log."})
    items: list[str] | None = field(
        default=None, metadata={"help": "A history of item ids, oldest first, separated by commas or spaces."}
    )
    titles: list[str] | None = field(
        default=None,
        metadata={"help": "A history of titles, oldest first; a part of a title is enough when it fits only one item."},
    )
    history: list[str] | None = field(
        default=None,
        metadata={"help": "A history of item ids and titles, mixed as you like. What is an item's id is read as that."},
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Model to ask; a blend must have been evaluated. Left out: rl where it is finished, else sft.",
            "choices": MODELS,
        },
    )
    k: int | None = field(default=None, metadata={"help": "Number of recommendations. Left out: 10."})
    next: int | None = field(
        default=None,
        metadata={
            "help": "Instead of --k: this many items one after the other, each as if the ones before it had been taken."
        },
    )
    where: str | None = field(
        default=None,
        metadata={
            "help": "Recommend only items of which this SQL expression of their columns is true: \"genre = 'sea' and stock > 0\"."
        },
    )
    diversity: int | None = field(
        default=None, metadata={"help": "At most this many items of a list may share their first code."}
    )
    cold_share: float | None = field(
        default=None,
        metadata={
            "help": "Give items that were never taken in training this share of the lists' places, such as 0.05, over the users of the "
            "log; they are ranked by their texts. The bias that does it is printed."
        },
    )
    cold_bias: float | None = field(
        default=None,
        metadata={
            "help": "The bias itself, in place of --cold_share: for single histories, and where there is no log."
        },
    )
    keep_seen: bool = field(default=False, metadata={"help": "Also recommend items of the history."})
    output: Path | None = field(
        default=None,
        metadata={"help": "Write the lists to this .csv, .jsonl or .parquet file. Left out: show a table a history."},
    )

    def __post_init__(self) -> None:
        for name in ("k", "next", "diversity"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value} items cannot be recommended; ask for 1 or more.")
        if self.next is not None and self.next > MOST_AHEAD:
            raise InputError(
                f"next={self.next} items one after the other are too many; ask for {MOST_AHEAD:,} or fewer."
            )
        asked = [name for name in (*OF_LOG, *OF_ITEMS) if getattr(self, name) not in (None, False)]
        if len(asked) != 1:
            raise InputError(
                "give one of --user ID, --users FILE, --all_users, --items ID,ID,…, --titles TITLE …, --history ITEM …"
                + (f", not {' and '.join(f'--{name}' for name in asked)}." if asked else ".")
            )
        if self.k is not None and self.next is not None:
            raise InputError("give --k, for candidates, or --next, for items one after the other: one of the two.")
        if self.next is not None and self.diversity is not None:
            raise InputError("--next asks for items that follow one another; leave --diversity out.")
        if self.cold_share is not None and self.cold_bias is not None:
            raise InputError("give --cold_share, or the --cold_bias that a call with it printed: one of the two.")
        if self.cold_share is not None and not 0 < self.cold_share < 1:
            raise InputError(f"cold_share={self.cold_share:g} is no share of lists; give more than 0 and less than 1.")
        if self.bundle is not None and self.run_dir is not None:
            raise InputError(f"give either --bundle {self.bundle} or --run_dir {self.run_dir}: one model is asked.")
        if self.bundle is not None and self.model is not None:
            raise InputError("a bundle holds one model; leave --model out.")
        if self.bundle is not None and self.log is None and asked[0] in OF_LOG:
            raise InputError(f"a bundle holds no log: --{asked[0]} needs --log FILE with the users' histories.")
        if self.log is not None and asked[0] in OF_ITEMS:
            raise InputError(
                f"--log holds the histories of users, and --{asked[0]} gives one itself; leave one of both out."
            )


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(RecommendConfig, arguments)
    import numpy as np

    from sidrec.data.tables import require_file
    from sidrec.serving.answer import Question, answers  # with torch and polars, for which --help does not wait
    from sidrec.serving.cold_lists import calibrated_bias
    from sidrec.serving.item_filter import allowed_by_sql
    from sidrec.serving.output import ENDINGS, write_parts
    from sidrec.serving.source import Source

    screen, tables = Screen("recommend"), [path for path in (config.log, config.users) if path is not None]
    for path in tables:
        require_file(path)
    if config.output is not None:
        inputs = tables if config.bundle is None else [*tables, config.bundle]
        check_output("--output", config.output, inputs, ENDINGS)
    folder = config.bundle or config.run_dir or RUN_DIR
    source = Source.open(folder, config.log, config.model, is_bundle=config.bundle is not None)
    bundle, asked = source.bundle, asked_about(source, config)
    allowed = None if config.where is None else allowed_by_sql(bundle.items, config.where)
    k, ahead = config.next or config.k or 10, config.next is not None
    bias = config.cold_bias
    if config.cold_share is not None:
        histories = [np.array(history, dtype=np.int64) for history in source.by_user["history"].to_list()]
        bias = calibrated_bias(bundle, histories, k, config.cold_share, not config.keep_seen, allowed)
        screen.say(f"recommend: --cold_bias {bias:.4f} gives cold items {config.cold_share:.1%} of these users' lists")
    question = Question(k, config.keep_seen, allowed, config.diversity, ahead, bias)
    if config.output is None:
        show_all(bundle, asked, answers(bundle, asked, question))
    else:
        with screen.bar("recommend", len(asked), "users") as bar:
            rows = write_parts(config.output, answers(bundle, asked, question, bar.advance))
        screen.summary(
            "recommend", [f"{config.output}: {rows:,} rows for {len(asked):,} users, by the {bundle.name} model"]
        )
    for line in source.notes(asked):
        screen.say(line)


def asked_about(source: Source, config: RecommendConfig) -> pl.DataFrame:
    """The frame of `sidrec.serving.history` that the flags mean."""
    from sidrec.data.readers import read_user_ids
    from sidrec.serving.history import asked_of_histories, history_of_items, items_of_ids

    bundle, dataset = source.bundle, source.dataset
    if config.all_users:
        return source.of_users(source.by_user["user_id"].to_list())
    if config.users is not None:
        return source.of_users(read_user_ids(config.users))
    if config.user is not None:
        source.require_user(config.user)
        return source.of_users([config.user])
    if config.items is not None:
        history = items_of_ids(bundle.index_of, config.items, dataset)
    else:
        words = config.titles or config.history or []
        history = history_of_items(bundle.items, words, dataset, ids=config.titles is None)
    return asked_of_histories([history], [None])


def show_all(bundle: Bundle, asked: pl.DataFrame, parts: Iterator[pl.DataFrame]) -> None:
    """Print the table of every history. parts: the answers to `asked`, in its order."""
    from sidrec.serving.table import show

    tables = (table for part in parts for table in part.partition_by("user_id", maintain_order=True))
    titles = bundle.titles
    for history, table in zip(asked["history"].to_list(), tables, strict=True):
        show(table, [titles[item] for item in history or []], bundle.name)


if __name__ == "__main__":
    run_as_command(main)

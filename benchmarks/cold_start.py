"""Items that have a text and no interaction: whether they are recommended, how well, and what the others pay.

python -m benchmarks.cold_start --dataset ml-100k --raw_dir ml-100k --work_dir outputs/cold-ml-100k --draws 3

A tenth of the items that have a text, drawn by a seed, are held out: their interactions are taken out of the log, and out of every
history; they stay in the catalogue. Then the stages are run as a user runs them, by the data set's configs: `sidrec prepare
--keep_untaken_items true`, `sidrec tokenize`, SFT. Cases are the last but one (valid) and the last (test) interactions of the whole log; a
cold case is one whose target was held out. Lists have ten items, those of the history left out.

among        Recall@10 of cold cases, the held-out items alone ranked
in the list  Recall@10 of cold cases, the whole catalogue ranked
cold share   of the lists' places, against the share of cold cases
warm         Recall@10 of the other cases; loss: against the model's own lists, with the interval of a paired bootstrap over users

What is chosen, on valid: the share of cold items in lists (of SHARES, times the share of cold cases, the largest whose warm loss is at most
MOST_LOSS, or the least), the bias that gives it, and the decay of the content item-KNN. Finished draws are kept in --work_dir. With --json
the last line is one JSON object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from benchmarks.finished_rows import FinishedRows, Row, markdown
from benchmarks.harness import (
    PREPARE,
    announce,
    check_at_least,
    plain_console,
    prepare_flags,
    print_figures,
    run_stage,
)
from benchmarks.our_models import OURS, PLANS, training_commands
from sidrec.baselines.histories import history_matrix
from sidrec.baselines.item_knn import DECAYS
from sidrec.data.dataset import Dataset, EvalCases, SplitName
from sidrec.decoding.cold_items import bias_of_share, joined
from sidrec.decoding.recommender import Recommendations
from sidrec.decoding.trie import SidTrie
from sidrec.evaluation.statistics import bootstrap_interval, paired_test
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.serving.bundle import Bundle

K = 10
HELD_OUT = 0.1  # of the items
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)  # of cold items in lists, times that of cold cases
MOST_LOSS = 0.03  # of warm Recall@10 on valid
WAYS = {
    "as trained": "the model alone",
    "codes": "bias; rows as training left them",
    "text": "**bias; rows by ridge regression from texts**",
    "knn_in_places": "the same places, filled by content item-KNN",
    "knn": "content item-KNN alone",
}
HEADER = "lists|among|in the list|cold share|warm|warm loss"


@dataclass
class ColdStartConfig:
    """Hold a tenth of the items out of training, and measure how they are recommended."""

    dataset: Literal["ml-100k", "amazon-beauty"] = field(metadata={"help": "Whose configs."})
    work_dir: Path = field(metadata={"help": "Where runs and finished draws are kept; another one for each data set."})
    raw_dir: Path | None = field(
        default=None, metadata={"help": "The publisher's unpacked files. Left out: a download."}
    )
    draws: int = field(default=3, metadata={"help": "Draws of held-out items, by seeds 0, 1, …"})
    cases: int = field(default=10_000, metadata={"help": "Cases of a split at most, drawn once."})
    threads: int = field(default=1, metadata={"help": "Threads of each stage."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object as the last line."})

    def __post_init__(self) -> None:
        check_at_least(1, draws=self.draws, cases=self.cases, threads=self.threads)


@dataclass(frozen=True)
class HeldOut:
    """is_cold: bool [N], the items held out. cases: by split, without held-out items in histories; those whose history then is empty are
    left out."""

    is_cold: np.ndarray
    cases: dict[SplitName, EvalCases]

    @classmethod
    def drawn(cls, dataset: Dataset, seed: int, most_cases: int) -> HeldOut:
        """A tenth of the items that have a text."""
        has_text = dataset.items["text"].fill_null("").str.strip_chars().str.len_chars().to_numpy() > 0
        drawn = np.random.default_rng(seed).permutation(has_text.nonzero()[0])[: int(HELD_OUT * dataset.n_items)]
        is_cold = np.isin(np.arange(dataset.n_items), drawn)
        splits: tuple[SplitName, ...] = ("valid", "test")
        return cls(is_cold, {split: _without(dataset.cases(split), is_cold, most_cases) for split in splits})

    def write(self, dataset: Dataset, folder: Path) -> list[str]:
        """The log without the items, and the whole catalogue, as files of one's own; the flags that prepare them."""
        folder.mkdir(parents=True, exist_ok=True)
        log = dataset.interactions.filter(~pl.Series(self.is_cold[dataset.interactions["item_index"].to_numpy()]))
        log = log.with_columns(item_id=dataset.items["item_id"].gather(log["item_index"]))
        log.select("user_id", "item_id", "timestamp").write_parquet(folder / "log.parquet")
        dataset.items.drop("item_index", "text").write_parquet(folder / "items.parquet")
        files = ["--interactions", str(folder / "log.parquet"), "--items", str(folder / "items.parquet")]
        rules = ["--k_user", "1", "--k_item", "1", "--protocol", "leave_one_out", "--keep_untaken_items", "true"]
        return ["--dataset", "own", *(str(Path(word).resolve()) if "/" in word else word for word in files), *rules]


def _without(cases: EvalCases, is_cold: np.ndarray, most: int) -> EvalCases:
    cases = cases.first_of_shuffle(most, 0)
    histories = [history[~is_cold[history]] for history in cases.histories]
    whole = EvalCases(cases.user_ids, histories, cases.targets)
    return whole.take(np.flatnonzero([len(history) > 0 for history in histories]))


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(ColdStartConfig, arguments), plain_console()
    announce(console, "cold_start", arguments)
    base = config.work_dir / "base"
    base.mkdir(parents=True, exist_ok=True)
    run_stage([*PREPARE, *prepare_flags(config.dataset, config.raw_dir)], base, config.threads)
    dataset, finished = Dataset.load(base), FinishedRows(config.work_dir / "rows.json")
    rows: list[Row] = []
    for draw in range(config.draws):
        made_from = {"dataset": dataset.info["name"], "items": dataset.n_items, "draw": draw, "cases": config.cases}
        row = finished.find(f"draw {draw}", made_from)
        if row is None:
            held_out = HeldOut.drawn(dataset, draw, config.cases)
            run_dir = config.work_dir / f"draw_{draw}"
            console.print(f"draw {draw}: log in {run_dir / 'log.txt'}")
            seconds = trained(run_dir, held_out.write(dataset, run_dir), config)
            row = finished.keep(f"draw {draw}", made_from, measured(run_dir, dataset, held_out) | {"seconds": seconds})
        rows.append(row)
    figures = pooled(rows)
    console.print(f"\n## {config.dataset}: {dataset.n_items:,} items, {config.draws} draws\n")
    console.print(markdown(HEADER.split("|"), [in_words(name, figures) for name in WAYS]))
    console.print(
        f"\n{figures['cold_cases']:,} of {figures['cases']:,} test cases are cold, {figures['event_share']:.1%}; "
        f"chosen shares {' '.join(str(row['share']) for row in rows)}, decays {' '.join(str(row['decay']) for row in rows)}"
    )
    if config.json:
        print_figures(figures)


def trained(run_dir: Path, preparing: list[str], config: ColdStartConfig) -> float:
    """Run the stages; their processor seconds."""
    stages = [[*PREPARE, *preparing], *training_commands(PLANS[config.dataset], OURS["both"], ["sft"], 0)]
    return sum(run_stage(stage, run_dir, config.threads) for stage in stages)


def measured(run_dir: Path, dataset: Dataset, held_out: HeldOut) -> Row:
    """What is chosen on valid, and of test by case: hits of every way."""
    prepared = Dataset.load(run_dir)
    if not prepared.items["item_id"].equals(dataset.items["item_id"]):
        raise InputError(f"{run_dir / 'data'} has other items than were held out of; give another --work_dir.")
    bundle, is_cold = Bundle.of_run(run_dir, "sft", prepared), held_out.is_cold
    texts = np.load(run_dir / "embeddings" / "text.npy")
    parts = {split: Parts.of(bundle, cases, is_cold, texts) for split, cases in held_out.cases.items()}
    valid, test = parts["valid"], parts["test"]
    decay = max(DECAYS, key=lambda decay: valid.among(valid.knn_lists(decay)).mean())
    share, biases = chosen_share(valid, bundle.trie)
    test_lists = {name: joined(test.others, test.cold[name], biases[name], K, bundle.trie) for name in biases}
    knn = test.knn_lists(decay)
    lists = {
        "as trained": test.plain.items,
        **{name: made.items for name, made in test_lists.items()},
        "knn_in_places": with_others_cold(test_lists["text"].items, knn, is_cold),
        "knn": test.knn_whole(decay),
    }
    among = {"as trained": test.cold["codes"].items, "knn_in_places": knn, "knn": knn}
    among |= {name: made.items for name, made in test.cold.items()}
    return {
        "share": share,
        "decay": decay,
        "biases": biases,
        "users": test.cases.user_ids,
        "is_cold": test.is_cold_case.tolist(),
        "hits": {name: test.hits(items).tolist() for name, items in lists.items()},
        "among": {name: test.among(items).tolist() for name, items in among.items()},
        "cold_share": {name: float(is_cold[items].mean()) for name, items in lists.items()},
    }


@dataclass(frozen=True)
class Parts:
    """The lists of a split's cases from which all ways are made. plain: of the model alone. others: without held-out items. cold: held-out
    items alone, by way of ranking them. texts: float [N, D]."""

    cases: EvalCases
    is_cold: np.ndarray
    texts: np.ndarray
    plain: Recommendations
    others: Recommendations
    cold: dict[str, Recommendations]

    @classmethod
    def of(cls, bundle: Bundle, cases: EvalCases, is_cold: np.ndarray, texts: np.ndarray) -> Parts:
        plain, histories = bundle.of_one_model, cases.histories
        return cls(
            cases,
            is_cold,
            texts,
            plain.recommend(histories, K, True),
            plain.recommend(histories, K, True, allowed=~is_cold),
            {
                "codes": plain.recommend(histories, K, True, allowed=is_cold),
                "text": bundle.of_cold.recommend(histories, K, True, allowed=is_cold),
            },
        )

    @property
    def is_cold_case(self) -> np.ndarray:
        """bool [B]: whether the target was held out."""
        cold_cases: np.ndarray = self.is_cold[self.cases.targets]
        return cold_cases

    def hits(self, items: np.ndarray) -> np.ndarray:
        """bool [B]. items: int64 [B, K]."""
        hit: np.ndarray = (items == self.cases.targets[:, None]).any(axis=1)
        return hit

    def among(self, items: np.ndarray) -> np.ndarray:
        """bool [cold cases]. items: int64 [B, K], of held-out items alone."""
        among: np.ndarray = self.hits(items)[self.is_cold_case]
        return among

    def knn_scores(self, decay: float) -> np.ndarray:
        """float64 [B, N]: cosines of an item's text to the history's, summed, each weighted by decay ** (items since)."""
        unit = self.texts / np.linalg.norm(self.texts, axis=1, keepdims=True).clip(min=1e-12)
        scores: np.ndarray = (history_matrix(self.cases.histories, len(unit), decay) @ unit) @ unit.T
        return scores

    def knn_lists(self, decay: float) -> np.ndarray:
        """int64 [B, K]: the held-out items nearest by text."""
        cold = self.is_cold.nonzero()[0]
        return cold[np.argsort(-self.knn_scores(decay)[:, cold], axis=1, kind="stable")[:, :K]]

    def knn_whole(self, decay: float) -> np.ndarray:
        """int64 [B, K]: of all items but those of the history."""
        scores = self.knn_scores(decay)
        for row, history in enumerate(self.cases.histories):
            scores[row, history] = -np.inf
        return np.argsort(-scores, axis=1, kind="stable")[:, :K]


def chosen_share(valid: Parts, trie: SidTrie) -> tuple[float, dict[str, float]]:
    """Which of SHARES, times the share of cold cases, and the bias of each way of ranking cold items that gives it."""
    warm = ~valid.is_cold_case
    plain = valid.hits(valid.plain.items)[warm].mean()
    for share in SHARES:
        biases = {
            name: bias_of_share(valid.others.log_probs, cold.log_probs, share * valid.is_cold_case.mean())
            for name, cold in valid.cold.items()
        }
        lists = joined(valid.others, valid.cold["text"], biases["text"], K, trie)
        if valid.hits(lists.items)[warm].mean() >= (1 - MOST_LOSS) * plain:
            break
    return share, biases


def with_others_cold(lists: np.ndarray, cold: np.ndarray, is_cold: np.ndarray) -> np.ndarray:
    """`lists`, int64 [B, K], their cold places filled from `cold`, int64 [B, K], the best first."""
    filled = lists.copy()
    for row, places in enumerate(is_cold[lists]):
        filled[row, places] = cold[row, : places.sum()]
    return filled


def pooled(rows: list[Row]) -> dict[str, Any]:
    """The figures over all draws; intervals are over users, each with the cases of all draws."""
    users = np.concatenate([row["users"] for row in rows])
    is_cold = np.concatenate([row["is_cold"] for row in rows])
    figures: dict[str, Any] = {
        "draws": len(rows),
        "cases": len(users),
        "cold_cases": int(is_cold.sum()),
        "event_share": float(is_cold.mean()),
        "shares": [row["share"] for row in rows],
        "seconds": [row["seconds"] for row in rows],
    }
    hits = {name: np.concatenate([row["hits"][name] for row in rows]).astype(float) for name in WAYS}
    plain = hits["as trained"][~is_cold]
    knn = np.concatenate([row["among"]["knn"] for row in rows]).astype(float)
    for name in WAYS:
        warm, among = hits[name][~is_cold], np.concatenate([row["among"][name] for row in rows]).astype(float)
        loss, better = (
            paired_test(plain, warm, 0, users=users[~is_cold]),
            paired_test(among, knn, 0, users=users[is_cold]),
        )
        figures[name] = {
            "among": among.mean(),
            "among_interval": bootstrap_interval(among, 0, users=users[is_cold]),
            "among_less_knn": [better.difference, better.low, better.high],
            "in_the_list": hits[name][is_cold].mean(),
            "cold_share": float(np.mean([row["cold_share"][name] for row in rows])),
            "warm": warm.mean(),
            "loss": [value / plain.mean() for value in (loss.difference, loss.low, loss.high)],
        }
    return figures


def in_words(name: str, figures: dict[str, Any]) -> list[str]:
    """A row of the Markdown table, under HEADER."""
    row = figures[name]
    low, high = row["among_interval"]
    of_events = row["cold_share"] / figures["event_share"]
    loss, least, most = row["loss"]
    return [
        WAYS[name],
        f"{row['among']:.3f} ({low:.3f} to {high:.3f})",
        f"{row['in_the_list']:.3f}",
        f"{row['cold_share']:.1%}, {of_events:.0%} of the cases'",
        f"{row['warm']:.4f}",
        "–" if name == "as trained" else f"{loss:.1%} ({least:.1%} to {most:.1%})",
    ]


if __name__ == "__main__":
    run_as_command(main)

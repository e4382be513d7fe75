"""Generative models joined with a memory (`sidrec.baselines.memory`): score(item) = log π(item) + weight · gain(item).

As probabilities it is a product of two experts, π · exp(weight · gain), and weight 0 is the generative model alone. Both are fitted on the
train part; the weight, and which baseline's memory it is where there are several, is chosen on valid. log π is exact, of every item of the
catalogue, so nothing is lost that a beam misses.

An ensemble does the same with the mean log π of several trainings, each of which may have its own seed and its own semantic IDs.
`sidrec evaluate` chooses, measures and stores the memory; `load_blend` gives what it chose to whoever recommends with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.special import log_softmax

from sidrec.baselines import BASELINES
from sidrec.baselines.baseline import DirectBaseline
from sidrec.baselines.memory import Memory
from sidrec.baselines.scorer import CASES_TOGETHER, Scorer
from sidrec.baselines.tuning import Tuning
from sidrec.data.dataset import EvalCases
from sidrec.data.metrics import NO_ITEM, mask_seen, ndcg_at, rank_of_target, ranks_in_lists
from sidrec.decoding.diversity import within
from sidrec.decoding.product import Expert
from sidrec.decoding.recommender import Recommendations, Recommender
from sidrec.decoding.trie import SidTrie
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import require_finished

ENSEMBLES = {"sft_ensemble": "sft", "rl_ensemble": "rl"}  # by name, the stage whose models are put together
BLENDS = {"sft_blend": "sft", "rl_blend": "rl"} | ENSEMBLES  # by name, the stage whose model is blended
RIVAL_BLENDS = {
    "sasrec_blend": "sasrec",
    "bsarec_blend": "bsarec",
}  # by name, the baseline in the model's place, whose scores are a softmax's
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
VALID_CASES = 2000  # most valid cases that weight and baseline are chosen on, drawn by the seed
MOST_ITEMS = 50_000  # scoring them all takes about 0.1 s a case on one core
EXPERTS = {  # what a blend can be made with
    name: baseline for name, baseline in BASELINES.items() if isinstance(baseline, DirectBaseline) and baseline.blends
}


@dataclass
class LatestLogProbs:
    """log π of the histories that were asked for last, by recommender: blends with one recommender ask for the same ones in turn."""

    histories: list[np.ndarray] | None = None
    by_recommender: dict[int, np.ndarray] = field(default_factory=dict)

    def mean(
        self, recommenders: Sequence[Recommender | Scorer], histories: list[np.ndarray], n_items: int
    ) -> np.ndarray:
        """The mean over recommenders of `log_probs`, float32 [B, N]: of their geometric mean, but for a factor a case."""
        if histories is not self.histories:
            self.histories, self.by_recommender = histories, {}
        for recommender in recommenders:
            if id(recommender) not in self.by_recommender:
                self.by_recommender[id(recommender)] = log_probs(recommender, histories, n_items)
        total = sum(self.by_recommender[id(recommender)] for recommender in recommenders)
        return np.asarray(total / np.float32(len(recommenders)))


@dataclass(frozen=True)
class Blend:
    """recommenders: give log π, several the mean of theirs; memory: the other expert; n_items: N, items of the catalogue; weight: of the
    gain, 0 or more; latest: shared by the blends that are measured together."""

    recommenders: Sequence[Recommender | Scorer]
    memory: Memory
    n_items: int
    weight: float
    name: str
    latest: LatestLogProbs = field(default_factory=LatestLogProbs)

    def scores(self, histories: list[np.ndarray], exclude_seen: bool = False) -> np.ndarray:
        """float32 [B, N]. exclude_seen: -inf for the history's items, and no place among those that gain."""
        log_pi = self.latest.mean(self.recommenders, histories, self.n_items)
        scores = blended(log_pi, self.memory.gains(histories, exclude_seen), self.weight)
        return mask_seen(scores, histories) if exclude_seen else scores

    def searching(self) -> Recommender:
        """The blend of one recommender as one that searches for the best items instead of scoring all."""
        (recommender,) = self.recommenders
        assert isinstance(recommender, Recommender)
        return replace(recommender, expert=Expert(self.memory, self.weight))

    @property
    def trie(self) -> SidTrie:
        """Of the first recommender's catalogue at this moment."""
        first = self.recommenders[0]
        assert isinstance(first, Recommender)
        return first.trie

    def recommend(
        self,
        histories: list[np.ndarray],
        k: int,
        exclude_seen: bool,
        progress: Callable[[int], object] | None = None,
        allowed: np.ndarray | None = None,
        diversity: int | None = None,
    ) -> Recommendations:
        """The k items of the best scores, exact; their scores as log-probabilities, which sum to 1 over what may be recommended.

        histories: item indices, oldest first. exclude_seen: leave the history's items out. progress, allowed: as of
        `Recommender.recommend`; diversity, too, by the first codes of the first recommender. Of equal scores the lower index comes first.
        Any number of threads may ask.
        """
        alone = replace(self, latest=LatestLogProbs())  # shared by no other thread
        scores = alone.scores(histories, exclude_seen)
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        width = k if diversity is None else self.n_items
        items = np.argsort(-scores, axis=1, kind="stable")[:, :width]
        log_shares = np.take_along_axis(log_softmax(scores, axis=1), items, axis=1)
        items, reachable = np.where(np.isneginf(log_shares), NO_ITEM, items), np.isfinite(scores).sum(axis=1)
        if diversity is not None:
            every, shares = torch.from_numpy(items), torch.from_numpy(log_shares)
            reachable = (within(self.trie, every, shares, self.n_items, diversity)[0] >= 0).sum(1).numpy()
            items, log_shares = (best.numpy() for best in within(self.trie, every, shares, k, diversity))
        if progress is not None:
            progress(len(histories))
        return Recommendations(items, log_shares, reachable)


def blended(log_pi: np.ndarray, gain: sparse.csr_array, weight: float) -> np.ndarray:
    """log π + weight · gain, float32 [B, N]. log_pi: float32 [B, N]. gain: sparse float32 [B, N]."""
    assert log_pi.shape == gain.shape
    assert log_pi.dtype == gain.dtype == np.float32
    scores = log_pi.copy()
    entries = gain.tocoo()
    scores[entries.row, entries.col] += np.float32(weight) * entries.data
    return scores


def log_probs(recommender: Recommender | Scorer, histories: list[np.ndarray], n_items: int) -> np.ndarray:
    """log π of every item after every history, float32 [B, N]; -inf for an item that is not in the recommender's catalogue."""
    if not isinstance(recommender, Recommender):
        return log_softmax(recommender.scores(histories), axis=1)
    whole = recommender.recommend(histories, n_items, exclude_seen=False, exact=True)
    assert whole.items.shape == (len(histories), n_items)
    rows, columns = np.nonzero(whole.items >= 0)
    log_pi = np.full(whole.items.shape, -np.inf, dtype=np.float32)
    log_pi[rows, whole.items[rows, columns]] = whole.log_probs[rows, columns]
    return log_pi


def tune_blend(
    name: str,
    recommenders: Sequence[Recommender | Scorer],
    memories: Sequence[Memory],
    valid: EvalCases,
    n_items: int,
    seed: int,
    latest: LatestLogProbs | None = None,
    screen: Screen | None = None,
) -> tuple[list[Blend], Tuning]:
    """One blend a recommender, or one of all where `name` is of ENSEMBLES; with the memory and the weight of the best valid NDCG@10 of
    the first blend, seen items masked; of equal ones the first.

    name: one of BLENDS or RIVAL_BLENDS; recommenders: one a seed of training; memories: of the train part; n_items: N; latest: what the
    blends share with others that are measured with them; screen: where the bar is drawn.
    Raises InputError for an ensemble or a baseline in a catalogue too large to be scored whole.
    """
    if n_items > MOST_ITEMS and name in (*ENSEMBLES, *RIVAL_BLENDS):
        raise InputError(
            f"{name} scores every item of the catalogue, and {n_items:,} are more than its {MOST_ITEMS:,}; leave it out of --models."
        )
    groups = [recommenders] if name in ENSEMBLES else [[recommender] for recommender in recommenders]
    settings = list(product(memories, WEIGHTS))
    screen, cases = screen or Screen(name, quiet=True), valid.first_of_shuffle(VALID_CASES, seed)
    if n_items > MOST_ITEMS:
        assert isinstance(recommenders[0], Recommender)
        values = list_values(recommenders[0], settings, cases, name, screen)
    else:
        values = blend_values(groups[0], settings, cases, n_items, name, screen)
    tuning = Tuning([{"with": memory.name, "weight": weight} for memory, weight in settings], values, "ndcg@10")
    memory, weight = settings[tuning.chosen]
    latest = latest or LatestLogProbs()
    return [Blend(group, memory, n_items, weight, name, latest) for group in groups], tuning


def blend_values(
    recommenders: Sequence[Recommender | Scorer],
    settings: Sequence[tuple[Memory, float]],
    cases: EvalCases,
    n_items: int,
    name: str,
    screen: Screen,
) -> list[float]:
    """NDCG@10 with each memory and weight of `settings`, seen items masked; every case is scored once."""
    ranks: list[list[np.ndarray]] = [[] for _ in settings]
    memories = {memory.name: memory for memory, _ in settings}
    with screen.bar(f"{name}: weights", len(cases), "cases") as bar:
        for start in range(0, len(cases), CASES_TOGETHER):
            part = cases.take(np.arange(start, min(start + CASES_TOGETHER, len(cases))))
            log_pi = LatestLogProbs().mean(recommenders, part.histories, n_items)
            gain = {name: memory.gains(part.histories) for name, memory in memories.items()}
            for ranks_of_setting, (memory, weight) in zip(ranks, settings, strict=True):
                scores = mask_seen(blended(log_pi, gain[memory.name], weight), part.histories)
                ranks_of_setting.append(rank_of_target(scores, part.targets))
            bar.advance(len(part))
    return [float(ndcg_at(np.concatenate(ranks_of_setting), 10).mean()) for ranks_of_setting in ranks]


def list_values(
    recommender: Recommender, settings: Sequence[tuple[Memory, float]], cases: EvalCases, name: str, screen: Screen
) -> list[float]:
    """As `blend_values`, of one recommender, from its lists of 10."""
    values = []
    with screen.bar(f"{name}: weights", len(settings) * len(cases), "lists") as bar:
        for memory, weight in settings:
            lists = replace(recommender, expert=Expert(memory, weight)).recommend(
                cases.histories, 10, exclude_seen=True, progress=bar.advance
            )
            values.append(float(ndcg_at(ranks_in_lists(lists.items, cases.targets), 10).mean()))
    return values


def load_blend(run_dir: Path, name: str) -> Blend | Recommender:
    """The blend of the run's first model that `sidrec evaluate` chose and measured, for catalogues that change, too.

    Its memory is the one that was stored there. Ensembles read the other runs from where they were.

    name: one of BLENDS.
    Raises InputError when the evaluation is missing, was made without this blend or from another model.
    """
    command = f"sidrec evaluate --run_dir {run_dir} --models {name}"
    folder = require_finished(run_dir, "evaluation", command)
    comparison = read_json(folder / "comparison.json")
    if name not in comparison["tuning"]:
        measured = ", ".join(comparison["models"])
        raise InputError(f"{folder} has no {name}, only {measured}; run `{command} --overwrite true` first.")
    chosen = chosen_settings(comparison, name)
    runs = [run_dir, *map(Path, comparison["other_runs"] if name in ENSEMBLES else [])]
    memory = Memory.load(folder / memory_file(name))
    recommenders = [Recommender.load(run, BLENDS[name]) for run in runs]
    blend = Blend(recommenders, memory, memory.n_items, chosen["weight"], name)
    return blend if name in ENSEMBLES else blend.searching()


def memory_file(name: str) -> str:
    """Where an evaluation keeps the memory of one of BLENDS, in its folder."""
    return f"{name}_memory.safetensors"


def chosen_settings(comparison: dict[str, Any], name: str) -> dict[str, Any]:
    """Of a tuned model of comparison.json, the row of its grid that was best on valid."""
    tuned = comparison["tuning"][name]
    settings: dict[str, Any] = tuned["grid"][tuned["chosen"]]
    return settings

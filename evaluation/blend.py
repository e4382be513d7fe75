"""Generative models' ranking blended with a baseline's: score(item) = log π(item) + weight · gain(item).

gain is 1 / log2(1 + the item's place in the baseline's ranking of the unseen items), see `evaluation.baselines.gains`. As probabilities
it is a product of two experts, π · exp(weight · gain), and weight 0 is the generative model alone. Both are fitted on the train part;
the weight, and which baseline it is where there are several, is chosen on valid. log π is exact, of every item of the catalogue, so
nothing is lost that a beam would not have found.

An ensemble does the same with the mean log π of several trainings, each of which may have its own seed and its own semantic IDs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from rich.progress import track

from data.dataset import Cases
from data.stage import InputError
from decoding.recommender import Recommender
from evaluation.baselines import ROWS_TOGETHER, Scorer, Tuning, gains
from evaluation.metrics import mask_seen, ndcg_at, rank_of_target

ENSEMBLES = {"sft_ensemble": "sft"}  # by name, the stage whose models are put together
BLENDS = {"sft_blend": "sft", "rl_blend": "rl"} | ENSEMBLES  # by name, the stage whose model is blended
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
VALID_CASES = 2000  # most valid cases that weight and baseline are chosen on, drawn by the seed
MOST_ITEMS = 50_000  # scoring them all takes about 0.1 s a case on one core


@dataclass
class LatestLogProbs:
    """log π of the histories that were asked for last, by recommender: blends with one recommender ask for the same ones in turn."""

    histories: list[np.ndarray] | None = None
    found: dict[int, np.ndarray] = field(default_factory=dict)

    def mean(self, recommenders: Sequence[Recommender], histories: list[np.ndarray], n_items: int) -> np.ndarray:
        """The mean over recommenders of `log_probs`, float32 [B, N]: of their geometric mean, but for a factor a case."""
        if histories is not self.histories:
            self.histories, self.found = histories, {}
        for recommender in recommenders:
            if id(recommender) not in self.found:
                self.found[id(recommender)] = log_probs(recommender, histories, n_items)
        total = sum(self.found[id(recommender)] for recommender in recommenders)
        return np.asarray(total / np.float32(len(recommenders)))


@dataclass(frozen=True)
class Blend:
    """recommenders: give log π, several the mean of theirs; scorer: the other expert; n_items: N, items of the catalogue; weight: of the
    gain, 0 or more; latest: shared by the blends that are measured together."""

    recommenders: Sequence[Recommender]
    scorer: Scorer
    n_items: int
    weight: float
    name: str
    latest: LatestLogProbs = field(default_factory=LatestLogProbs)

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        log_pi = self.latest.mean(self.recommenders, histories, self.n_items)
        return blended(log_pi, gains(self.scorer, histories), self.weight)


def blended(log_pi: np.ndarray, gain: np.ndarray, weight: float) -> np.ndarray:
    """log π + weight · gain. log_pi, gain: float32 [B, N]. Returns float32 [B, N]."""
    assert log_pi.shape == gain.shape
    assert log_pi.dtype == gain.dtype == np.float32
    return log_pi + np.float32(weight) * gain


def log_probs(recommender: Recommender, histories: list[np.ndarray], n_items: int) -> np.ndarray:
    """log π of every item after every history, float32 [B, N]; -inf for an item that is not in the recommender's catalogue."""
    found = recommender.recommend(histories, n_items, exclude_seen=False, exact=True)
    assert found.items.shape == (len(histories), n_items)
    rows, columns = np.nonzero(found.items >= 0)
    log_pi = np.full(found.items.shape, -np.inf, dtype=np.float32)
    log_pi[rows, found.items[rows, columns]] = found.log_probs[rows, columns]
    return log_pi


def tune_blend(
    name: str,
    recommenders: list[Recommender],
    scorers: Sequence[Scorer],
    valid: Cases,
    n_items: int,
    seed: int,
    latest: LatestLogProbs | None = None,
) -> tuple[list[Blend], Tuning]:
    """One blend a recommender, or one of all where `name` is of ENSEMBLES; with the baseline and the weight of the best valid NDCG@10 of
    the first blend, seen items masked; of equal ones the first.

    name: one of BLENDS; recommenders: one a seed of training; scorers: fitted on the train part; n_items: N; latest: what the blends
    share with others that are measured with them.
    Raises InputError when the catalogue is too large to be scored whole.
    """
    if n_items > MOST_ITEMS:
        raise InputError(
            f"{name} scores every item of the catalogue, and {n_items:,} are more than its {MOST_ITEMS:,}; leave it out of --models."
        )
    groups = [recommenders] if name in ENSEMBLES else [[recommender] for recommender in recommenders]
    settings = list(product(scorers, WEIGHTS))
    values = blend_values(groups[0], settings, valid.drawn(VALID_CASES, seed), n_items, f"{name}: weights")
    tuning = Tuning([{"with": scorer.name, "weight": weight} for scorer, weight in settings], values, "ndcg@10")
    scorer, weight = settings[tuning.chosen]
    latest = latest or LatestLogProbs()
    return [Blend(group, scorer, n_items, weight, name, latest) for group in groups], tuning


def blend_values(
    recommenders: Sequence[Recommender],
    settings: Sequence[tuple[Scorer, float]],
    cases: Cases,
    n_items: int,
    label: str,
) -> list[float]:
    """NDCG@10 with each baseline and weight of `settings`, seen items masked; every case is scored once. label: of the progress bar."""
    ranks: list[list[np.ndarray]] = [[] for _ in settings]
    scorers = {scorer.name: scorer for scorer, _ in settings}
    for start in track(range(0, len(cases), ROWS_TOGETHER), description=label, transient=True):
        part = cases.take(np.arange(start, min(start + ROWS_TOGETHER, len(cases))))
        log_pi = LatestLogProbs().mean(recommenders, part.histories, n_items)
        gain = {name: gains(scorer, part.histories) for name, scorer in scorers.items()}
        for own, (scorer, weight) in zip(ranks, settings, strict=True):
            scores = mask_seen(blended(log_pi, gain[scorer.name], weight), part.histories)
            own.append(rank_of_target(scores, part.targets))
    return [float(ndcg_at(np.concatenate(own), 10).mean()) for own in ranks]

"""The demo data: a catalogue and a log drawn from a model that is written down, so that the best possible Recall is known.

The catalogue has C clusters of M items. Cluster c has popularity π(c) ∝ rank(c)^-cluster_skew and two fixed successors: on a
random cycle through all clusters, f₁(c) is the next one and f₂(c) the seventh. Item i has popularity q(i) ∝ rank(i)^-item_skew
within its cluster. Ranks (1 = most popular) and the cycle are drawn once from the seed. A user's length is uniform on
[min_length, max_length], and no user takes an item twice. With c₁ the cluster of the last item, c₂ that of the item before it,
and S the items taken so far, the next item y has probability

    P(y | history) = ω(c(y)) / Σ over c with an item outside S of ω(c)  ·  q(y) / Σ over items i of c(y) outside S of q(i)

for y outside S, and 0 inside it, where

    ω(c) = p_forward · (p_first·[c = f₁(c₁)] + (1 - p_first)·[c = f₂(c₁)])  +  p_return · [c = c₂]  +  p_jump · π(c),
    p_jump = 1 - p_forward - p_return.

Without a last item ω = π; with one item only, the return term is left out (the fraction renormalises what remains). The return term
is a memory that no first-order Markov model sees. A user's first time is uniform over a year, the gaps are geometric with mean
one hour (seconds). Titles and descriptions are made of words of the cluster and words that all clusters share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from sidrec.data.dataset import Dataset, EvalCases, SplitName
from sidrec.data.readers import RawLog
from sidrec.pipeline.errors import InputError

THEMES = {
    "sea adventure": "harbor lighthouse tide anchor reef captain voyage",
    "space opera": "nebula starship orbit comet asteroid airlock galaxy",
    "cosy mystery": "teapot vicar parlour alibi clue bookshop inspector",
    "cookery": "saffron skillet pantry bakery dumpling orchard feast",
    "gardening": "rose trellis seedling greenhouse meadow hedge compost",
    "mountain climbing": "summit glacier ridge basecamp crevasse ascent avalanche",
    "ancient history": "pharaoh temple legion scroll chariot oracle mosaic",
    "high fantasy": "dragon wizard amulet citadel rune griffin prophecy",
    "western": "saloon sheriff canyon stagecoach prairie outlaw mustang",
    "spy thriller": "cipher embassy courier defector microfilm checkpoint informant",
    "romance": "ballroom bouquet letter kiss proposal sweetheart wedding",
    "horror": "crypt werewolf attic scarecrow seance coffin nightmare",
    "jazz": "trumpet saxophone nightclub bassline drummer solo swing",
    "chess": "gambit bishop endgame pawn checkmate rook stalemate",
    "cycling": "peloton velodrome sprint pedal breakaway derailleur jersey",
    "medicine": "surgeon ward vaccine stethoscope clinic diagnosis ambulance",
    "courtroom drama": "verdict jury witness barrister gavel testimony appeal",
    "wildlife": "otter falcon elephant burrow savanna penguin migration",
    "robotics": "android circuit servo sensor automaton gearbox algorithm",
    "railways": "locomotive signal platform tunnel viaduct conductor freight",
    "painting": "canvas easel fresco palette gallery watercolour portrait",
    "polar exploration": "sledge icebreaker aurora husky igloo blizzard expedition",
    "theatre": "curtain understudy rehearsal playwright spotlight prompter matinee",
    "magic tricks": "illusion rabbit deck tophat vanish wand conjurer",
}
ADJECTIVES = (
    *("Silent", "Golden", "Broken", "Hidden", "Last", "Crimson", "Winter", "Distant", "Forgotten", "Little"),
    *("Burning", "Secret", "Lonely", "Wandering", "Quiet", "Midnight", "Hollow", "Borrowed", "Second", "Glass"),
)
SHARED_PHRASES = (
    "a story of friends and strangers",
    "told with warmth and humour",
    "a guide for curious readers",
    "an award-winning favourite",
    "full of surprises to the end",
    "a classic in a new edition",
)
SECONDS_PER_YEAR = 365 * 24 * 3600
MEAN_GAP_SECONDS = 3600
FIRST_SECOND = 1_700_000_000
SECOND_SUCCESSOR_STEP = 7
ORACLE_KS = (1, 5, 10, 20, 50)


@dataclass(frozen=True)
class DemoModel:
    """The parameters of the formula above; `DemoModel(**info["demo_model"])` rebuilds the very same model.

    Items are numbered 0…N-1 in the order of the catalogue that `generate` gives (a random one: the number tells nothing).
    """

    seed: int = 0
    n_users: int = 1200
    n_clusters: int = 24
    items_per_cluster: int = 20
    min_length: int = 20
    max_length: int = 40
    p_forward: float = 0.4
    p_first: float = 0.6
    p_return: float = 0.45
    cluster_skew: float = 0.8
    item_skew: float = 1.2

    def __post_init__(self) -> None:
        assert 2 <= self.n_clusters <= len(THEMES), f"n_clusters must be 2…{len(THEMES)}"
        assert 1 <= self.items_per_cluster <= len(ADJECTIVES), f"items_per_cluster must be 1…{len(ADJECTIVES)}"
        assert min(self.p_forward, self.p_return, self.p_first, 1 - self.p_first) >= 0
        assert self.p_forward + self.p_return < 1, "p_jump must be positive, so that there is always an item to take"
        assert 1 <= self.min_length <= self.max_length <= self.n_items, "a user cannot take more items than there are"

    @property
    def n_items(self) -> int:
        return self.n_clusters * self.items_per_cluster

    @cached_property
    def item_ids(self) -> list[str]:
        """The id of item i at index i."""
        return [f"b{item:04d}" for item in range(self.n_items)]

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """cluster_of int [N], rank int [N] (0 = most popular), π float [C], successors float [C, C] (rows sum to 1)."""
        rng = np.random.default_rng([self.seed, 0])
        C = self.n_clusters
        shuffled = rng.permutation(self.n_items)
        popularity = (1 + rng.permutation(C)) ** -self.cluster_skew
        cycle = rng.permutation(C)
        successors = np.zeros((C, C))
        for step, share in ((1, self.p_first), (SECOND_SUCCESSOR_STEP, 1 - self.p_first)):
            successors[cycle, np.roll(cycle, -step)] += share
        return (
            shuffled // self.items_per_cluster,
            shuffled % self.items_per_cluster,
            popularity / popularity.sum(),
            successors,
        )

    def next_item_probabilities(self, history: np.ndarray) -> np.ndarray:
        """P(y | history), float64 [N]. history: the numbers of the items taken so far, oldest first (may be empty)."""
        cluster_of = self._tables[0]
        history = np.asarray(history, dtype=np.int64)
        assert history.ndim == 1, f"history must be [length], got {history.shape}"
        seen = np.zeros((1, self.n_items), dtype=bool)
        seen[0, history] = True
        last, before = (cluster_of[history[-n]] if len(history) >= n else -1 for n in (1, 2))
        return self._probabilities(np.array([last]), np.array([before]), seen)[0]

    def _probabilities(self, last: np.ndarray, before: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """The formula for B users at once. last, before: clusters c₁ and c₂, int [B], -1 for none; seen: bool [B, N]. → [B, N]."""
        cluster_of, rank, popularity, successors = self._tables
        B = len(last)
        assert seen.shape == (B, self.n_items)
        weights = np.tile(popularity, (B, 1))  # [B, C]
        begun, remembers = last >= 0, before >= 0
        weights[begun] *= 1 - self.p_forward - self.p_return
        weights[begun] += self.p_forward * successors[last[begun]]
        weights[remembers, before[remembers]] += self.p_return
        within = (1.0 + rank) ** -self.item_skew * ~seen  # [B, N]
        member = cluster_of[:, None] == np.arange(self.n_clusters)  # [N, C]
        totals = within @ member.astype(np.float64)  # [B, C]
        open_cluster = (~seen).astype(np.float64) @ member > 0
        weights *= open_cluster
        weights /= weights.sum(axis=1, keepdims=True)
        share = np.divide(weights, totals, out=np.zeros_like(weights), where=open_cluster)
        return within * share[:, cluster_of]

    def generate(self) -> RawLog:
        """Draw the catalogue and the log. The same model gives the same bytes."""
        rng = np.random.default_rng([self.seed, 1])
        sequences = self._draw_sequences(rng)
        start = FIRST_SECOND + rng.integers(0, SECONDS_PER_YEAR, self.n_users)
        users, items, times = [], [], []
        for user, sequence in enumerate(sequences):
            gaps = rng.geometric(1 / MEAN_GAP_SECONDS, len(sequence))
            users += [f"u{user:05d}"] * len(sequence)
            items += [self.item_ids[item] for item in sequence]
            times.append(start[user] + np.cumsum(gaps))
        log = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.concatenate(times).astype(np.int64)})
        return RawLog(log.with_columns(pl.col("user_id", "item_id").cast(pl.Categorical)), self._catalogue())

    def _draw_sequences(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Every user's items in order, all users moving one step at a time."""
        cluster_of = self._tables[0]
        lengths = rng.integers(self.min_length, self.max_length, self.n_users, endpoint=True)
        sequences = np.zeros((self.n_users, self.max_length), dtype=np.int64)
        seen = np.zeros((self.n_users, self.n_items), dtype=bool)
        last, before = np.full(self.n_users, -1), np.full(self.n_users, -1)
        for step in range(self.max_length):
            cumulative = np.cumsum(self._probabilities(last, before, seen), axis=1)
            drawn = rng.random((self.n_users, 1)) * cumulative[:, -1:]  # the last sum is 1 up to rounding
            item = (cumulative <= drawn).sum(axis=1)
            sequences[:, step] = item
            seen[np.arange(self.n_users), item] = True
            last, before = cluster_of[item], last
        return [sequence[:length] for sequence, length in zip(sequences, lengths, strict=True)]

    def _catalogue(self) -> pl.DataFrame:
        """item_id, title ("The Silent Harbor", unique), genre, description; in the order of the items' numbers."""
        cluster_of, rank, _, _ = self._tables
        themes = [(genre, words.split()) for genre, words in THEMES.items()]
        rng = np.random.default_rng([self.seed, 2])
        pairs = [rng.permutation(len(ADJECTIVES) * len(words)) for _, words in themes]
        titles, genres, descriptions = [], [], []
        for cluster, item_rank in zip(cluster_of, rank, strict=True):
            genre, words = themes[cluster]
            adjective, noun = divmod(int(pairs[cluster][item_rank]), len(words))
            others = rng.permutation([word for word in words if word != words[noun]])[:3]
            titles.append(f"The {ADJECTIVES[adjective]} {words[noun].capitalize()}")
            genres.append(genre)
            descriptions.append(f"{', '.join(others[:2])} and {others[2]}, {rng.choice(SHARED_PHRASES)}")
        return pl.DataFrame({"item_id": self.item_ids, "title": titles, "genre": genres, "description": descriptions})

    def oracle_recall(self, cases: EvalCases, ks: tuple[int, ...], item_ids: list[str]) -> dict[str, dict[int, float]]:
        """The best Recall@K that any model can reach on `cases`, whose item index i means `item_ids[i]`.

        "expected": the mean over cases of the sum of the K largest P(y | history); "realised": how often the target is among
        these K on the cases as drawn. Only items of `item_ids` are ranked.
        """
        number_of = {item_id: number for number, item_id in enumerate(self.item_ids)}
        numbers = np.array([number_of[item_id] for item_id in item_ids])
        mass, hits = np.zeros(len(item_ids)), np.zeros(len(item_ids))
        for history, target in zip(cases.histories, cases.targets, strict=True):
            probabilities = self.next_item_probabilities(numbers[history])[numbers]
            ranking = np.argsort(-probabilities, kind="stable")
            mass += np.cumsum(probabilities[ranking])
            hits += np.cumsum(ranking == target)
        last = {k: min(k, len(item_ids)) - 1 for k in ks}
        return {
            "expected": {k: float(mass[index]) / len(cases) for k, index in last.items()},
            "realised": {k: float(hits[index]) / len(cases) for k, index in last.items()},
        }


def oracle_for(dataset: Dataset, split: SplitName, ks: tuple[int, ...] = ORACLE_KS) -> dict[str, dict[int, float]]:
    """`oracle_recall` on a prepared demo data set.

    Raises InputError when the data set is not the demo, or when k-core removed interactions: then histories have holes, and the
    formula does not hold.
    """
    info: dict[str, Any] = dataset.info
    if "demo_model" not in info:
        raise InputError(f"the best possible Recall is known for the demo data only, not for {info['name']!r}.")
    if info["counts"]["removed_interactions"]:
        raise InputError(
            "the demo was prepared with a k-core that removed interactions; prepare it with --k_user 1 --k_item 1."
        )
    model = DemoModel(**info["demo_model"])
    return model.oracle_recall(dataset.cases(split), ks, dataset.items["item_id"].to_list())

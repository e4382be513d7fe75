"""What a changed policy would have earned, from the lists that another one drew and served.

sidrec off-policy --log served.parquet --run_dir outputs/ml-100k --model rl
sidrec off-policy --log served.jsonl --run_dir outputs/ml-100k --model rl --temperature 0.5 --clip 20

The log's format is that of `sidrec.evaluation.served_lists`, the estimates are those of `sidrec.evaluation.off_policy`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import write_json
from sidrec.pipeline.output_path import check_output
from sidrec.pipeline.screen import Screen

if TYPE_CHECKING:
    import numpy as np

    from sidrec.decoding.recommender import Recommender
    from sidrec.evaluation.off_policy import Estimate
    from sidrec.evaluation.served_lists import ServedLists

NUMBERS_AT_ONCE = 1 << 22  # lists x slots x items, in float64: 32 MB, a few times
MODELS = ("sft", "rl")
NAMES = {"logged": "the log", "ips": "IPS", "snips": "SNIPS", "dr": "doubly robust"}


@dataclass
class OffPolicyConfig:
    """Estimate what lists drawn from a run's model would earn, from logged lists that another policy drew."""

    log: Path = field(
        metadata={
            "help": "Parquet or JSON Lines file, one served list a row: user_id, history, exclude_seen, items, and for every slot its "
            "propensity and its reward in the lists propensities and rewards."
        }
    )
    run_dir: Path = field(
        default=Path("outputs/demo"),
        metadata={"help": "Run directory of the model that is judged; item ids are its data's."},
    )
    model: str = field(default="rl", metadata={"help": "Model that is judged.", "choices": MODELS})
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "Its lists are drawn by π to the power 1/temperature, without replacement: below 1 nearer to its best list, above 1 "
            "more at random."
        },
    )
    clip: float | None = field(
        default=None,
        metadata={
            "help": "Largest weight of a slot, as a ratio of probabilities; larger ones are cut to it, which steadies the estimates and "
            "biases them. Left out: none is cut."
        },
    )
    write: Path | None = field(default=None, metadata={"help": "JSON file to write all figures to."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap and of the reward model's folds."})

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; it must be above 0 and finite.")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip is {self.clip}; it must be above 0, 10 for example.")


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(OffPolicyConfig, arguments)
    from sidrec.data.dataset import Dataset  # with torch and polars, for which --help does not wait
    from sidrec.decoding.recommender import Recommender
    from sidrec.evaluation.off_policy import doubts, estimates, slot_weights
    from sidrec.evaluation.served_lists import ServedLists

    if config.write is not None:
        config.write.parent.mkdir(parents=True, exist_ok=True)
        check_output("--write", config.write, [config.log])
    screen = Screen("off-policy")
    dataset = Dataset.load(config.run_dir)
    lists = ServedLists.read(config.log, dataset.items["item_id"].to_list())
    n_users = len(set(lists.users))
    if n_users < 2:
        raise InputError(f"{config.log} has lists of one user only; intervals are over users, so log several.")
    recommender = Recommender.load(config.run_dir, config.model)
    screen.begin(f"{config.model} of {config.run_dir}, judged on {len(lists):,} lists of {n_users:,} users")

    target, before, after = judged(recommender, lists, dataset.n_items, config, screen)
    whole = slot_weights(target, lists.propensities, lists.shown)
    if not whole.any():
        raise InputError(
            f"{config.model} of {config.run_dir} would serve none of the lists of {config.log}, so nothing can be estimated; "
            "judge a policy nearer to the one that served them."
        )
    weights = slot_weights(target, lists.propensities, lists.shown, config.clip)
    by_name = estimates(weights, lists.rewards, lists.shown, before, after, lists.users, config.seed)
    warnings = doubts(whole, lists.shown, lists.users)
    slots, clipped = slot_figures(whole, lists), float((whole > weights).any(axis=1).mean())
    show(screen, by_name, slots, clipped, config.clip, warnings)
    if config.write is not None:
        asked = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
        figures: dict[str, Any] = {name: asdict(estimate) for name, estimate in by_name.items()}
        about = {"lists": len(lists), "users": n_users, "slots": slots, "clipped": clipped, "warnings": warnings}
        write_json(config.write, {"settings": asked, "estimates": figures, **about})
        screen.say(f"written: {config.write}")


def judged(
    recommender: Recommender, lists: ServedLists, n_items: int, config: OffPolicyConfig, screen: Screen
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The model's probability of each slot's item given those above it, and the reward model's values before and after it: float64
    [R, K] each."""
    import numpy as np
    import torch

    from sidrec.decoding.eligibility import Eligibility
    from sidrec.decoding.plackett_luce import slot_probabilities
    from sidrec.evaluation.off_policy import fold_of_users, predicted_rewards, predicted_values

    folds = fold_of_users(lists.users, config.seed)
    predicted = predicted_rewards(lists.items, lists.rewards, folds, n_items)  # [folds, K, items]
    snapshot = recommender.catalogue.snapshot
    trie = snapshot.trie
    assert trie.n_items == n_items, f"{trie.n_items} items in the model's trie, {n_items} in the data"
    by_leaf = torch.from_numpy(predicted).to(trie.device)[:, :, trie.item_of_leaf[:].long()]
    nothing = np.zeros(0, dtype=np.int64)
    target, before, after = (np.zeros(lists.items.shape) for _ in range(3))
    longest = max(1, NUMBERS_AT_ONCE // (lists.items.shape[1] * n_items))
    with screen.bar("probabilities of the lists", len(lists), "lists") as bar:
        for rows in recommender.batches(lists.histories, longest):
            histories = [lists.histories[row] for row in rows]
            closed = [lists.histories[row] if lists.exclude_seen[row] else nothing for row in rows]
            scores = recommender.leaf_log_probs(histories, snapshot).double() / config.temperature
            scores = scores.masked_fill(~Eligibility(trie, len(rows), closed).leaves(), -torch.inf)
            items = torch.from_numpy(lists.items[rows]).to(trie.device)
            leaves = trie.leaf_of_item(items.clamp(min=0)).masked_fill(items < 0, -1)
            target[rows] = slot_probabilities(scores, leaves).cpu().numpy()
            values = predicted_values(scores, leaves, by_leaf[torch.from_numpy(folds[rows]).to(trie.device)])
            before[rows], after[rows] = (value.cpu().numpy() for value in values)
            bar.advance(len(rows))
    return target, before, after


def slot_figures(weights: np.ndarray, lists: ServedLists) -> list[dict[str, float]]:
    """Of each slot: how many lists have it, their mean reward, and of the weights (not clipped) the mean, the largest and the effective
    sample size."""
    from sidrec.evaluation.off_policy import effective_sample_size

    return [
        {
            "lists": int(here.sum()),
            "logged_reward": float(lists.rewards[here, slot].mean()),
            "mean_weight": float(weights[here, slot].mean()),
            "largest_weight": float(weights[here, slot].max()),
            "effective_sample_size": effective_sample_size(weights[here, slot]),
        }
        for slot, here in enumerate(lists.shown.T)
    ]


def show(
    screen: Screen,
    by_name: dict[str, Estimate],
    slots: list[dict[str, float]],
    clipped: float,
    clip: float | None,
    warnings: list[str],
) -> None:
    """Print the estimates, the slots' weights and the warnings."""
    screen.say(f"{'reward a list':<14}{'value':>10}{'std. error':>12}   {'95 % interval':<24}less the log's")
    for name, each in by_name.items():
        interval = f"{each.low:.4f} to {each.high:.4f}"
        gain = "" if name == "logged" else f"{each.gain:+.4f} ({each.gain_low:+.4f} to {each.gain_high:+.4f})"
        screen.say(f"{NAMES[name]:<14}{each.value:>10.4f}{each.standard_error:>12.4f}   {interval:<24}{gain}".rstrip())
    screen.say(
        f"{'slot':<6}{'lists':>10}{'logged reward':>16}{'mean weight':>14}{'largest':>12}{'effective lists':>18}"
    )
    for number, slot in enumerate(slots, 1):
        screen.say(
            f"{number:<6}{slot['lists']:>10,}{slot['logged_reward']:>16.4f}{slot['mean_weight']:>14.3f}{slot['largest_weight']:>12,.1f}"
            f"{slot['effective_sample_size']:>18,.1f}"
        )
    if clip is not None:
        screen.say(
            f"weights above {clip:g} are cut to it, in {clipped:.1%} of the lists; the slots' figures are of the weights before"
        )
    for warning in warnings:
        screen.say(warning)


if __name__ == "__main__":
    run_as_command(main)

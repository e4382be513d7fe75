"""What would this user take next?

sidrec recommend --run_dir outputs/ml-100k --user 196
sidrec recommend --run_dir outputs/ml-100k --history "toy story" "fargo"
sidrec recommend --run_dir outputs/ml-100k --user 196 --model sft_blend
sidrec recommend --bundle bundle --history "toy story" "fargo"

A blend is the one that `sidrec evaluate` put together on valid, with the memory that it stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError

MODELS = ("sft", "rl", "sft_blend", "rl_blend", "sft_ensemble")


@dataclass
class RecommendConfig:
    """Recommend items to a user of the data, or to whoever has taken the items named."""

    run_dir: Path = field(default=Path("outputs/demo"), metadata={"help": "Run directory with a trained model."})
    bundle: Path | None = field(
        default=None,
        metadata={
            "help": "Folder that `sidrec bundle` has written, or a copy of it, asked instead of a run directory."
        },
    )
    user: str | None = field(
        default=None, metadata={"help": "A user_id of the data; the history is all that they did."}
    )
    history: list[str] | None = field(
        default=None, metadata={"help": "Titles, oldest first; a part of a title is enough when it fits only one item."}
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Model to ask; a blend must have been evaluated. Left out: rl where it is finished, else sft.",
            "choices": MODELS,
        },
    )
    k: int = field(default=10, metadata={"help": "Number of recommendations."})
    keep_seen: bool = field(default=False, metadata={"help": "Also recommend items of the history."})

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k={self.k} recommendations cannot be made; ask for 1 or more.")
        if (self.user is None) == (self.history is None):
            raise InputError("give either --user ID or --history TITLE [TITLE …], one of the two.")
        if self.bundle is not None and (self.user is not None or self.model is not None):
            raise InputError(
                "a bundle holds one model and no log: give --history TITLE [TITLE …], without --user and --model."
            )


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(RecommendConfig, arguments)
    if config.bundle is not None:
        recommend_by_bundle(config.bundle, config)
    else:
        recommend_by_run(config)


def recommend_by_bundle(folder: Path, config: RecommendConfig) -> None:
    from sidrec.serving.bundle import Bundle  # with torch and polars, for which --help does not wait
    from sidrec.serving.history import history_of_titles
    from sidrec.serving.table import show

    bundle = Bundle.load(folder)
    history = history_of_titles(bundle.titles, config.history or [])
    k = min(config.k, len(bundle.items))
    recommended = bundle.recommender.recommend([history], k, exclude_seen=not config.keep_seen)
    show(bundle.titles, bundle.sids, history, recommended.items[0], recommended.log_probs[0], bundle.name)


def recommend_by_run(config: RecommendConfig) -> None:
    from sidrec.data.dataset import Dataset
    from sidrec.serving.bundle import trained_model
    from sidrec.serving.history import history_of_titles, history_of_user
    from sidrec.serving.table import show
    from sidrec.tokenizer.semantic_ids import SemanticIds

    dataset, sids = Dataset.load(config.run_dir), SemanticIds.load(config.run_dir)
    if config.history is not None:
        history = history_of_titles(dataset.titles, config.history, dataset)
    else:
        history = history_of_user(dataset, str(config.user), config.run_dir / "data")
    name = config.model or last_trained(config.run_dir)
    k = min(config.k, dataset.n_items)
    recommended = trained_model(config.run_dir, name).recommend([history], k, exclude_seen=not config.keep_seen)
    show(dataset.titles, sids, history, recommended.items[0], recommended.log_probs[0], name)


def last_trained(run_dir: Path) -> str:
    """ "rl" where that stage is finished, else "sft"."""
    from sidrec.pipeline.stage import read_manifest

    manifest = read_manifest(run_dir / "rl")
    return "rl" if manifest is not None and manifest["finished"] else "sft"


if __name__ == "__main__":
    run_as_command(main)

"""What would this user take next?

sidrec recommend --run_dir outputs/ml-100k --user 196
sidrec recommend --run_dir outputs/ml-100k --history "toy story" "fargo"
sidrec recommend --run_dir outputs/ml-100k --history 50 181
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

RUN_DIR = Path("outputs/demo")
MODELS = ("sft", "rl", "sft_blend", "rl_blend", "sft_ensemble", "rl_ensemble")


@dataclass
class RecommendConfig:
    """Recommend items to a user of the data, or to whoever has taken the items named."""

    run_dir: Path | None = field(
        default=None, metadata={"help": f"Run directory with a trained model. Left out, without --bundle: {RUN_DIR}."}
    )
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
        default=None,
        metadata={
            "help": "Item ids (item_id of the catalogue) or titles, mixed as you like, oldest first; a part of a title is enough when it "
            "fits only one item. What is an item's id is read as that."
        },
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
            raise InputError("give either --user ID or --history ITEM [ITEM …], one of the two.")
        if self.bundle is not None and self.run_dir is not None:
            raise InputError(f"give either --bundle {self.bundle} or --run_dir {self.run_dir}: one model is asked.")
        if self.bundle is not None and (self.user is not None or self.model is not None):
            raise InputError(
                "a bundle holds one model and no log: give --history ITEM [ITEM …], without --user and --model."
            )


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(RecommendConfig, arguments)
    if config.bundle is not None:
        recommend_by_bundle(config.bundle, config)
    else:
        recommend_by_run(config.run_dir or RUN_DIR, config)


def recommend_by_bundle(folder: Path, config: RecommendConfig) -> None:
    from sidrec.serving.bundle import Bundle  # with torch and polars, for which --help does not wait
    from sidrec.serving.history import history_of_items
    from sidrec.serving.table import show

    bundle = Bundle.load(folder)
    history = history_of_items(bundle.items, config.history or [])
    k = min(config.k, len(bundle.items))
    lists = bundle.recommender.recommend([history], k, exclude_seen=not config.keep_seen)
    n_items = bundle.recommender.trie.n_items
    show(bundle.items, bundle.sids, history, lists, config.k, bundle.name, n_items=n_items)


def recommend_by_run(run_dir: Path, config: RecommendConfig) -> None:
    from sidrec.data.dataset import Dataset
    from sidrec.serving.bundle import trained_model
    from sidrec.serving.history import history_of_items, history_of_user
    from sidrec.serving.table import show
    from sidrec.tokenizer.semantic_ids import SemanticIds

    dataset, sids = Dataset.load(run_dir), SemanticIds.load(run_dir)
    if config.history is not None:
        history = history_of_items(dataset.items, config.history, dataset)
    else:
        history = history_of_user(dataset, str(config.user), run_dir / "data")
    name = config.model or last_trained(run_dir)
    k = min(config.k, dataset.n_items)
    lists = trained_model(run_dir, name).recommend([history], k, exclude_seen=not config.keep_seen)
    show(dataset.items, sids, history, lists, config.k, name)


def last_trained(run_dir: Path) -> str:
    """ "rl" where that stage is finished, else "sft"."""
    from sidrec.pipeline.stage import read_manifest

    manifest = read_manifest(run_dir / "rl")
    return "rl" if manifest is not None and manifest["finished"] else "sft"


if __name__ == "__main__":
    run_as_command(main)

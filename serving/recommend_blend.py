"""What would this user take next, by a blend of the table: the model and the baseline that `sidrec.evaluation.evaluate` put
together on valid.

python -m sidrec.evaluation.evaluate --run_dir outputs/ml-100k --models sft_blend --blend_with item_knn slit
python -m sidrec.serving.recommend_blend --run_dir outputs/ml-100k --user 196

The baseline is fitted anew when this starts: a second for item-KNN, seconds to minutes for SLIT. A server loads `load_blend` once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console

from sidrec.baselines.blend import BLENDS, load_blend
from sidrec.data.dataset import Dataset
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.serving.recommend import Question, find_history, show
from sidrec.tokenizer.semantic_ids import SemanticIds


@dataclass
class BlendedConfig(Question):
    model: str = field(
        default="sft_blend",
        metadata={"help": "The blend to ask, of those that were evaluated.", "choices": list(BLENDS)},
    )


def main() -> None:
    config = parse_config(BlendedConfig)
    dataset, sids = Dataset.load(config.run_dir), SemanticIds.load(config.run_dir)
    history = find_history(dataset, config)
    found = load_blend(config.run_dir, config.model).recommend([history], config.k, not config.keep_seen)
    show(Console(), dataset, sids, history, found.items[0], found.log_probs[0], config.model)


if __name__ == "__main__":
    run_as_command(main)

"""Stage 2: put the SID tokens into a language model's vocabulary and fine-tune it to write the next item.

accelerate launch sft/train.py --config configs/sft/demo.yaml --run_dir outputs/demo
"""

from __future__ import annotations

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.sft.recipe import settings_by_size
from sidrec.sft.settings import CONFIGS, REFUSED


def main(arguments: list[str] | None = None) -> None:
    config, tasks, backbone, weights, training = parse_configs(
        CONFIGS, arguments, stage="sft", refused=REFUSED, suited=settings_by_size
    )

    from sidrec.sft.seeds import fine_tune_seeds  # torch and transformers, for which `--help` does not wait

    fine_tune_seeds(config, tasks, backbone, weights, training)


if __name__ == "__main__":
    run_as_command(main)

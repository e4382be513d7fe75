"""Stage 3: sharpen the fine-tuned model by GRPO (arXiv 2402.03300) with recall rewards under constrained decoding.

accelerate launch rl/grpo.py --config configs/rl/demo.yaml --run_dir outputs/demo
"""

from __future__ import annotations

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.rl.recipe import settings_by_size
from sidrec.rl.settings import CONFIGS, REFUSED


def main(arguments: list[str] | None = None) -> None:
    config, objective, training = parse_configs(
        CONFIGS, arguments, stage="rl", refused=REFUSED, suited=settings_by_size
    )

    from sidrec.rl.practice import practise  # torch and transformers, for which `--help` does not wait

    practise(config, objective, training)


if __name__ == "__main__":
    run_as_command(main)

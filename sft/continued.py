"""How a finished model is trained further when new events have come: with what it was trained with, but slower and for less long."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import recorded_settings
from sidrec.sft.settings import BackboneConfig, SftConfig, SftTrainerConfig, TaskConfig, WeightsConfig

UPDATE = "update"  # the stage that says what came of it
MEASURED = {  # so that the best moment of few passes is noticed
    "eval_strategy": "steps",
    "eval_steps": 0.25,
    "save_strategy": "steps",
    "save_steps": 0.25,
}
Configs = tuple[SftConfig, TaskConfig, BackboneConfig, WeightsConfig, SftTrainerConfig]


@dataclass
class ContinuedConfig:
    """How far a model is trained further."""

    rate: float = field(
        default=0.5, metadata={"help": "Learning rate, as a share of the peak that the model was trained with."}
    )
    passes: float = field(default=4.0, metadata={"help": "Passes over the histories that are trained on."})
    replay: float = field(
        default=1.0,
        metadata={
            "help": "Histories of users without new events that are trained on, too, as a multiple of the number of users with some, "
            "drawn by the seed."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the draw, of the training and of the intervals."})

    def __post_init__(self) -> None:
        for name, least in (("rate", "above 0"), ("passes", "above 0"), ("replay", "0 or more")):
            value = getattr(self, name)
            if not (value > 0 or (value == 0 and name == "replay")) or value == float("inf"):
                raise InputError(f"--{name} is {value:g}; it must be {least} and finite.")


def continued_configs(
    settings_of: Path, model: Path, run_dir: Path, how: ContinuedConfig, overwrite: bool = False
) -> Configs:
    """The settings of sft/ in `run_dir`, whose data were joined: those of the run directory `settings_of`, but from the folder `model` on.

    The rate is a share of the peak that the first training had, whatever updates came between, with its schedule; passes are counted anew,
    the model is measured at every quarter of them, and the best measurement's weights stay. Raises InputError where the old settings are
    not to be read.
    """
    recorded = recorded_settings(settings_of, "sft", overwrite=False)
    if recorded is None:
        raise InputError(
            f"{settings_of / 'sft'} holds no finished 'sft' stage; run `accelerate launch sft/train.py` first."
        )
    update_before = recorded_settings(settings_of, UPDATE, overwrite=False)
    peak = recorded["learning_rate"] / (1.0 if update_before is None else update_before["rate"])
    changed: dict[str, Any] = {
        "run_dir": run_dir,
        "overwrite": overwrite,
        "early_stopping_patience": 0,
        "replay": how.replay,
        "learning_rate": how.rate * peak,
        "num_train_epochs": how.passes,
        "max_steps": -1,
        "seed": how.seed,
        **MEASURED,
    }
    made = [
        kind(**{each.name: values[each.name] for each in fields(kind) if each.name in values})
        for kind in (SftConfig, TaskConfig, WeightsConfig, SftTrainerConfig)
        for values in [recorded | changed]
    ]
    config, tasks, weights, training = made
    return config, tasks, BackboneConfig(model_name_or_path=str(model)), weights, training  # type: ignore[return-value]

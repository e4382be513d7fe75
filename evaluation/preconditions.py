"""What must hold before anything is fitted or measured, so that a mistake is said at once and not after hours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil

from sidrec.baselines import BASELINES
from sidrec.baselines.blend import BLENDS, ENSEMBLES
from sidrec.baselines.value_model import FOLDS, training_events
from sidrec.data.dataset import Dataset
from sidrec.decoding.recommender import STAGE_COMMANDS
from sidrec.evaluation.leaks import check_leaks
from sidrec.evaluation.models import needed_baselines, runs_of, trained_stages
from sidrec.evaluation.ranking import measured_cases
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import sha256
from sidrec.pipeline.stage import require_finished


def inputs_of(config: EvaluateConfig) -> tuple[Path, ...]:
    """What the models are made from."""
    files = [run / stage / "manifest.json" for stage in trained_stages(config.models) for run in runs_of(config, stage)]
    codes = dict.fromkeys(file.parent.parent / "sid" / "codes_all.npy" for file in files)
    return (config.run_dir / "data", *codes, *files)


def check(dataset: Dataset, config: EvaluateConfig) -> None:
    """Raise InputError where a model is missing, the data leave nothing to fit or to measure, or something leaks."""
    check_models(config)
    check_data(dataset, config)
    if config.value_column is not None:
        check_values(dataset, config.value_column, config)
    for name in needed_baselines(config):
        needed, free = 4 * BASELINES[name].matrices * dataset.n_items**2, psutil.virtual_memory().available
        if needed > free:
            raise InputError(
                f"{name} holds matrices of items x items, which take {needed / 1e9:.1f} GB for the {dataset.n_items:,} items of "
                f"{config.run_dir / 'data'}, and {free / 1e9:.1f} GB of memory are free; leave it out of --models and --blend_with."
            )
    check_leaks(dataset, config.run_dir / "data" / "interactions.parquet")


def check_models(config: EvaluateConfig) -> None:
    """Every trained model is there, those of other runs are of the same data, and an ensemble has several."""
    for name, stage in ENSEMBLES.items():
        if name in config.models and len(runs_of(config, stage)) == 1:
            raise InputError(
                f"--models has {name}, but --other_runs names no run to put together with this one; give some, or train with --seeds 3."
            )
    for run_dir in (config.run_dir, *config.other_runs):
        for name in trained_stages(config.models):
            try:
                require_finished(run_dir, name, f"{STAGE_COMMANDS[name]} --run_dir {run_dir}")
            except InputError as error:
                needing = " and ".join(model for model in config.models if name in (model, BLENDS.get(model)))
                raise InputError(f"{str(error).rstrip('.')}, or leave {needing} out of --models.") from error
    for run_dir in config.other_runs:
        here, there = (folder / "data" / "interactions.parquet" for folder in (config.run_dir, run_dir))
        if not there.exists() or sha256(here) != sha256(there):
            raise InputError(f"--other_runs has {run_dir}, whose data are not those of {config.run_dir}; leave it out.")


def check_data(dataset: Dataset, config: EvaluateConfig) -> None:
    """There are cases of both splits, and something to fit."""
    for split in ("valid", "test"):
        if not (dataset.interactions["split"] == split).any():
            raise InputError(
                f"{config.run_dir / 'data'} has no {split} interaction; prepare data with longer histories."
            )
    if not any(len(sequence) > 1 for sequence in dataset.train_sequences):
        raise InputError(
            f"{config.run_dir / 'data'} has no user with two training interactions; nothing can be fitted."
        )


def check_values(dataset: Dataset, column: str, config: EvaluateConfig) -> None:
    """The column can be fitted, and the cases of each split have values, one of them liked where that is asked for."""
    file = dataset.folder / "interactions.parquet"
    training_events(dataset, column, FOLDS, config.seed)
    for split, cases in measured_cases(dataset, config.valid_cases, config.seed, column).items():
        values = cases.values
        assert values is not None
        if np.isnan(values).all():
            raise InputError(
                f"{file}: column {column!r} is empty in every {split} row that is asked for; name another."
            )
        if config.liked_from is not None and not (values >= config.liked_from).any():
            raise InputError(
                f"{file}: column {column!r} is {config.liked_from:g} or more in no {split} row that is asked for (the highest is "
                f"{np.nanmax(values):g}); lower --liked_from."
            )

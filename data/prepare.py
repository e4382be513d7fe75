"""Prepare a data set: read, filter, split, write the run's `data/`.

sidrec prepare --dataset demo
sidrec prepare --config configs/data/ml-100k.yaml
sidrec prepare --dataset amazon-2014 --category Beauty --run_dir outputs/beauty
sidrec prepare --dataset own --interactions log.csv --items catalogue.csv --run_dir outputs/mine
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sidrec.data.settings import NOT_DECISIVE, PrepareConfig
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config, peek
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage


def main(arguments: Sequence[str] | None = None) -> None:
    named = peek("dataset", arguments, run_dir=Path())  # another data set begins with its own settings
    config = parse_config(PrepareConfig, arguments, stage=None if named else "data")
    # Polars comes with these, and --help does not wait for it
    from sidrec.data.build import build, find_inputs, tell
    from sidrec.data.summary import summary

    assert config.run_dir is not None
    inputs = find_inputs(config)
    stage = Stage(config.run_dir, "data", fingerprint(config, leave_out=NOT_DECISIVE), inputs)
    screen = Screen("data")
    if config.overwrite or not stage.is_finished():
        with stage.building(config.overwrite) as folder:
            dataset = build(config, inputs, screen)
            tell(screen, "writing", len(dataset.interactions), "interactions")
            dataset.save(folder)
            del dataset  # the summary reads the files: the same one whether they were made now or before
    screen.summary("data", summary(stage.folder))


if __name__ == "__main__":
    run_as_command(main)

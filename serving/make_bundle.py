"""Put what recommending needs into one folder, to be copied to where it is served.

sidrec bundle --run_dir outputs/ml-100k --model sft_blend
sidrec recommend --bundle outputs/ml-100k/bundle --history "toy story" "fargo"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage

BUNDLED = ("sft", "rl", "sft_blend", "rl_blend")


@dataclass
class BundleConfig:
    """Write a run's model, its semantic IDs, the items and, of a blend, the memory into the run directory's bundle/."""

    run_dir: Path = field(default=Path("outputs/demo"), metadata={"help": "Run directory with a trained model."})
    model: str | None = field(
        default=None,
        metadata={
            "help": "Which model; a blend must have been evaluated. Left out: rl where it is finished, else sft.",
            "choices": BUNDLED,
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a bundle of another model or another training."})


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(BundleConfig, arguments)
    from sidrec.baselines.blend import BLENDS
    from sidrec.decoding.recommender import Recommender
    from sidrec.serving.about import FORMAT_VERSION, ITEMS, encoder_files
    from sidrec.serving.bundle import last_trained, trained_model, write_bundle

    name = config.model or last_trained(config.run_dir)
    model = trained_model(config.run_dir, name)
    assert isinstance(model, Recommender), f"{name} is of several models"
    inputs = [config.run_dir / BLENDS.get(name, name), *encoder_files(config.run_dir)]
    inputs += [config.run_dir / "data" / file for file in (ITEMS, "interactions.parquet")]
    if name in BLENDS:
        inputs.append(config.run_dir / "evaluation")
    chosen = {"model": name, "format_version": FORMAT_VERSION}
    screen, stage = Screen("bundle"), Stage(config.run_dir, "bundle", chosen, tuple(inputs), working=())
    if not config.overwrite and stage.is_finished():
        screen.say(f"bundle: finished already, nothing to do ({stage.folder})")
        return
    with stage.building(config.overwrite) as folder:
        write_bundle(model, config.run_dir, name, folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    screen.summary(
        "bundle",
        [
            f"{stage.folder}: {name}, {size / 1e6:.1f} MB; it needs nothing else of the run",
            f"`sidrec recommend --bundle {stage.folder} --history ITEM [ITEM …]` asks it",
        ],
    )


if __name__ == "__main__":
    run_as_command(main)

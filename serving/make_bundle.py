"""Put what recommending needs into one folder, to be copied to where it is served.

sidrec bundle --run_dir outputs/ml-100k --model sft_blend
sidrec bundle --run_dir outputs/mine/updates/latest --catalogue_of outputs/mine/bundle
sidrec recommend --bundle outputs/ml-100k/bundle --history "toy story" "fargo"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sidrec.evaluation.settings import BUNDLED
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage
from sidrec.serving.update import UPDATES


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
    catalogue_of: Path | None = field(
        default=None,
        metadata={
            "help": "Bundle whose catalogue it takes over, with the items that were added, changed and removed since. Left out: of an "
            "update, the newest bundle of the run and its updates before."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a bundle of another model or another training."})


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(BundleConfig, arguments)
    from sidrec.baselines.blend import BLENDS
    from sidrec.decoding.recommender import Recommender
    from sidrec.serving.about import FORMAT_VERSION, ITEMS, encoder_files, read_about
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
    if config.catalogue_of is not None:
        read_about(config.catalogue_of)
    if not config.overwrite and stage.is_finished():
        screen.summary("bundle", [f"finished already ({stage.folder})", *with_catalogue(config, stage.folder)])
        return
    with stage.building(config.overwrite) as folder:
        write_bundle(model, config.run_dir, name, folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    screen.summary(
        "bundle",
        [
            f"{stage.folder}: {name}, {size / 1e6:.1f} MB; it needs nothing else of the run",
            *with_catalogue(config, stage.folder),
            f"`sidrec recommend --bundle {stage.folder} --history ITEM [ITEM …]` asks it",
        ],
    )


def with_catalogue(config: BundleConfig, bundle: Path) -> list[str]:
    """Take the catalogue over that the settings mean, and say so; nothing where there is none, or the bundle has it.

    Raises InputError where the bundle has versions of its own that would be lost, and as `take_over` does.
    """
    from sidrec.serving.versions import FIRST, FOLDER, take_over, versions

    source = config.catalogue_of or earlier_bundle(config.run_dir)
    if source is None:
        return []
    if (bundle / FOLDER).is_dir() and not (config.overwrite and config.catalogue_of):
        (made, _), (others, _) = versions(bundle), versions(source)
        if config.catalogue_of is not None and others != made[: len(others)]:
            raise InputError(
                f"{bundle} has versions of a catalogue, which those of {source} would replace; pass --overwrite true where they may."
            )
        return []
    version = take_over(bundle, source)
    if version.number == FIRST:
        return []
    return [f"its catalogue is that of {source}: version {version.number}, {version.items:,} items"]


def earlier_bundle(run_dir: Path) -> Path | None:
    """Of an update, the bundle of the newest update before it that has one, else that of the run; None of any other run directory."""
    folder = run_dir.resolve()
    if folder.parent.name != UPDATES:
        return None
    before = sorted(path for path in folder.parent.glob("[0-9]*") if path.name < folder.name)
    bundles = (run / "bundle" for run in (*reversed(before), folder.parent.parent))
    return next((bundle for bundle in bundles if bundle.is_dir()), None)


if __name__ == "__main__":
    run_as_command(main)

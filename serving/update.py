"""Bring a run up to date with new events: join them, train its model further, and keep the new one unless it is worse.

sidrec update --run_dir outputs/mine --interactions new.csv
sidrec bundle --run_dir outputs/mine/updates/latest
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json, write_json
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.pipeline.lock import only_one
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage, read_manifest
from sidrec.sft.continued import UPDATE, ContinuedConfig

if TYPE_CHECKING:
    from sidrec.data.dataset import Dataset

UPDATES, LATEST, VERDICT = "updates", "latest", "update.json"
LINKED = ("embeddings", "sid")  # which an update leaves as they are
NOT_BETTER = 3  # exit code where the old model stays, as of --stop_if_no_gain
FORMAT = 1
VERDICT_FORMAT = 2  # 1 had the new model first


@dataclass
class UpdateConfig:
    """Join new events to a run's data, train its model further on them, and let the new one take its place unless it is worse."""

    interactions: Path = field(
        metadata={
            "help": "The new events, CSV or Parquet as of `sidrec prepare`; those that the run has already are left out."
        }
    )
    run_dir: Path = field(
        default=Path("outputs/demo"),
        metadata={
            "help": "Run directory with a trained model. Where it has updates already, the newest that was accepted goes on."
        },
    )
    out: Path | None = field(
        default=None,
        metadata={
            "help": "Run directory of the new model. Left out: the next number in updates/ of the run directory."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Make --out again, even from other events or settings."})

    def __post_init__(self) -> None:
        if self.overwrite and self.out is None:
            raise InputError("--overwrite is of --out; without it an update has a folder of its own, so leave it out.")
        if self.out is not None and self.out.resolve() == self.run_dir.resolve():
            raise InputError(
                f"--out {self.out} is the run directory itself, which stays as it is; name another folder."
            )


def main(arguments: list[str] | None = None) -> None:
    config, how = parse_configs((UpdateConfig, ContinuedConfig), arguments)
    with only_one(config.run_dir / ".locks", UPDATE):
        accepted = update(config, how)
    if not accepted:
        sys.exit(NOT_BETTER)


def update(config: UpdateConfig, how: ContinuedConfig) -> bool:
    """Whether the new model was accepted, or there was nothing to do."""
    from sidrec.data.new_events import JOINED, joined_in_words  # polars and torch, for which --help does not wait
    from sidrec.serving.bundle import last_trained
    from sidrec.sft.continued import continued_configs
    from sidrec.sft.fine_tuning import fine_tune

    screen, start = Screen(UPDATE), latest_run(config.run_dir)
    model = start / last_trained(start)
    out = config.out or next_place(config, start, how)
    stage = data_stage(out, start, config.interactions, how)
    training = continued_configs(start, model, out, how, config.overwrite)
    if config.overwrite or not stage.is_finished():
        joined = joined_data(start, config.interactions)
        sentences = joined_in_words(joined.info, config.interactions)
        if joined.info[JOINED]["unknown_events"] == joined.info[JOINED]["rows"]:
            raise InputError(f"{'; '.join(sentences)}.")
        for sentence in sentences:
            screen.say(f"{UPDATE}: {sentence}")
        if not joined.info[JOINED]["events"]:
            screen.say(f"{UPDATE}: nothing is new to {start}, so nothing is to do")
            return True
        write_data(stage, joined, start, config.overwrite)
    link_semantic_ids(start, out)
    screen.begin(f"the model of {model} is trained further, into {out}")
    fine_tune(*training)
    verdict = judged(out, model, how, config.overwrite, screen)
    if config.out is None:
        point_to(config.run_dir, out if verdict["accepted"] else start)
    screen.summary(UPDATE, in_words(verdict, out, model))
    return bool(verdict["accepted"])


# ---- where


def latest_run(run_dir: Path) -> Path:
    """The run directory of the newest accepted update of a run; the run's own where there is none.

    Raises InputError for what stands in the link's place, as when a copy has followed it, and for a link that leads nowhere.
    """
    link = run_dir / UPDATES / LATEST
    if not link.is_symlink() and link.exists():
        raise InputError(
            f"{link} is no link any more, as after a copy that follows links; delete it, and link it to the update that is used."
        )
    if not link.is_symlink() or str(link.readlink()) == os.pardir:
        return run_dir
    latest = link.parent / link.readlink()
    if not latest.is_dir():
        raise InputError(
            f"{link} leads to {latest}, which is not there; put it back, or delete the link to go on from {run_dir}."
        )
    return latest


def point_to(run_dir: Path, run: Path) -> None:
    """Let `updates/latest` be this run directory, at one stroke: an accepted update, or the run's own."""
    link = run_dir / UPDATES / LATEST
    coming = link.with_name(f".{LATEST}.coming")
    coming.unlink(missing_ok=True)
    coming.symlink_to(os.pardir if run == run_dir else run.name, target_is_directory=True)
    coming.replace(link)


def next_place(config: UpdateConfig, start: Path, how: ContinuedConfig) -> Path:
    """Where an update goes: to the last number, where that is one of these events that was stopped or refused; else to the next.

    What one of other events left half-done is deleted: no model of it was ever used.
    """
    folder = config.run_dir / UPDATES
    numbers = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
    last = folder / f"{numbers[-1] if numbers else 1:04d}"
    if not last.is_dir() or is_of(last, start, config.interactions, how):
        return last
    manifest = read_manifest(last / UPDATE)
    if manifest is not None and manifest["finished"]:
        return folder / f"{numbers[-1] + 1:04d}"
    shutil.rmtree(last)
    return last


def is_of(run: Path, start: Path, events: Path, how: ContinuedConfig) -> bool:
    """Whether the data of an update were made from this run and these events, and for this training."""
    try:
        return data_stage(run, start, events, how).is_finished()
    except InputError:
        return False


# ---- the stages


def data_stage(out: Path, start: Path, events: Path, how: ContinuedConfig) -> Stage:
    from sidrec.data.tables import require_file

    require_file(events)
    return Stage(out, "data", fingerprint(how, leave_out=()) | {"format": FORMAT}, (start / "data", events))


def joined_data(start: Path, events: Path) -> Dataset:
    from sidrec.data.dataset import Dataset
    from sidrec.data.new_events import join_events

    return join_events(Dataset.load(start), events)


def write_data(stage: Stage, joined: Dataset, start: Path, overwrite: bool) -> None:
    """Finish data/ of the update. Its items.parquet is the run's byte by byte, which the semantic IDs were made for."""
    if (stage.run_dir / "sid").is_dir() and not (stage.run_dir / "sid").is_symlink():
        raise InputError(f"{stage.run_dir} is a run with semantic IDs of its own; name another --out.")
    with stage.building(overwrite) as folder:
        joined.save(folder)
        shutil.copyfile(start / "data" / "items.parquet", folder / "items.parquet")


def link_semantic_ids(start: Path, out: Path) -> None:
    """Links, relative, to where the run's semantic IDs and item vectors lie."""
    for name in LINKED:
        if (start / name).exists() and not (out / name).exists():
            (out / name).unlink(missing_ok=True)  # a link that leads nowhere
            target = os.path.relpath((start / name).resolve(), out.resolve())
            (out / name).symlink_to(target, target_is_directory=True)


def judged(out: Path, model: Path, how: ContinuedConfig, overwrite: bool, screen: Screen) -> dict[str, Any]:
    """The verdict on the new model, measured unless it has been. model: the old one's folder."""
    settings = fingerprint(how, leave_out=()) | {"format": VERDICT_FORMAT}
    stage = Stage(out, UPDATE, settings, (out / "data", out / "sft", model))
    if overwrite or not stage.is_finished():
        figures = measured(out, model, how.seed, screen)
        with stage.building(overwrite) as folder:
            write_json(folder / VERDICT, figures)
    return dict(read_json(stage.folder / VERDICT))


def measured(out: Path, model: Path, seed: int, screen: Screen) -> dict[str, Any]:
    """Both models on the last tenth of the new events, which neither was trained on, and whether the new one is accepted: it is unless the
    whole interval of its NDCG@10 less the old one's lies below 0."""
    from sidrec.data.dataset import Dataset
    from sidrec.data.new_events import JOINED
    from sidrec.decoding.recommender import Recommender
    from sidrec.serving.model_comparison import compared, in_lists

    dataset = Dataset.load(out)
    cases = dataset.cases("test")
    models = (Recommender.load(model.parent, model.name), Recommender.load(out, "sft"))
    old, new = (
        in_lists(each, cases, label, screen) for each, label in zip(models, ("old model", "new model"), strict=True)
    )
    figures = compared(old, new, cases, seed)
    accepted = figures["ndcg@10"]["high"] >= 0
    return {"accepted": accepted, "stage": model.name, JOINED: dataset.info[JOINED], **figures}


def in_words(verdict: dict[str, Any], out: Path, model: Path) -> list[str]:
    from sidrec.serving.model_comparison import lines

    taken_or_not = (
        f"the new model is accepted: {out}"
        if verdict["accepted"]
        else f"the new model is worse, so the old one stays, {model}, exit code {NOT_BETTER}; give these events again with later ones"
    )
    return [taken_or_not, *lines(verdict, "old", "new"), f"what was measured is in {out / UPDATE / VERDICT}"]


if __name__ == "__main__":
    run_as_command(main)

"""The command that makes what an evaluation found best ready to recommend with."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from sidrec.baselines.blend import EXPERTS
from sidrec.evaluation.settings import BUNDLED
from sidrec.evaluation.table import MASK_NAMES, Metrics
from sidrec.pipeline.files import read_json


def bundle_command(folder: Path) -> tuple[str, str] | None:
    """Why, in words, and the command, to be pasted. folder: of a finished evaluation. None where no model of ours was measured.

    What is best is chosen on valid, by Recall@10 with seen items masked. A bundle holds no baseline alone: where one is ahead, a blend with
    it is measured and bundled, and where the blend has been measured, the best of ours.
    """
    metrics: Metrics = read_json(folder / "metrics.json")
    models = read_json(folder / "comparison.json")["models"]
    recall = {name: metrics[name]["valid"][MASK_NAMES[True]]["recall@10"] for name in models}
    ours = [name for name in models if name in BUNDLED]
    if not ours:
        return None
    best, best_of_ours = max(recall, key=recall.__getitem__), max(ours, key=recall.__getitem__)
    sidrec = "sidrec" if shutil.which("sidrec") else shlex.quote(str(Path(sys.executable).with_name("sidrec")))
    run_dir = f"--run_dir {shlex.quote(str(folder.parent))}"
    bundle = f"{sidrec} bundle {run_dir} --model"
    if best == best_of_ours:
        return f"{best} is best on valid; to recommend with it", f"{bundle} {best}"
    blend = best_of_ours if best_of_ours.endswith("_blend") else f"{best_of_ours}_blend"
    if blend in models:
        return (
            f"{best} is best on valid, and of what a bundle holds {best_of_ours}; to recommend with that",
            f"{bundle} {best_of_ours}",
        )
    expert = f" --blend_with {best}" if best in EXPERTS else ""
    evaluate = f"{sidrec} evaluate {run_dir} --models {' '.join([*models, blend])}{expert} --overwrite true"
    why = f"{best} is ahead of {best_of_ours} on valid; to join {best_of_ours} with a baseline's memory, and recommend with both"
    return why, f"{evaluate} && {bundle} {blend}"

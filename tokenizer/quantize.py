"""Item vectors → semantic IDs: `python -m sidrec.tokenizer.quantize --run_dir outputs/demo`. Reads `embeddings/`, writes `sid/`.

Puts the sources side by side, fits the quantizer that `--quantizer` names, gives every item a semantic ID that no other item has, and
reports. Where the quantizer allows it, several processes share the work: `accelerate launch --config_file
configs/accelerate/two_processes.yaml -m sidrec.tokenizer.quantize --run_dir outputs/demo`.
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.files import atomic_path, read_json, write_json
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage
from sidrec.tokenizer.config import parse_arguments
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors, chunks
from sidrec.tokenizer.quantizers import Kind
from sidrec.tokenizer.quantizers.level_sizes import check_n_levels

CHECKPOINTS = "checkpoints"  # of a quantizer that is being trained

if TYPE_CHECKING:
    from sidrec.data.dataset import Dataset
    from sidrec.tokenizer.quantizer import Quantizer
    from sidrec.tokenizer.semantic_ids import SemanticIds


def main(arguments: list[str] | None = None) -> None:
    config, kind = parse_arguments(arguments, stage="sid")
    from sidrec.data.dataset import Dataset  # after --help, which shall be fast
    from sidrec.tokenizer.embeddings.collapse import check_spread
    from sidrec.tokenizer.embeddings.sources import read_sources
    from sidrec.tokenizer.kmeans.distributed import join_processes, leave_processes

    rank = join_processes(config.quantizer, kind.shares_rows)
    screen = Screen("sid", quiet=rank > 0)
    dataset = Dataset.load(config.run_dir)
    vectors = ItemVectors(read_sources(config, dataset.n_items), config.weights)  # [N, D]
    unique = config.unique_of(dataset.n_items)
    level_sizes = kind.choose_level_sizes(config.level_sizes, vectors.shape, unique)
    check_n_levels(level_sizes, unique)
    kind.check(vectors, level_sizes)
    inputs = (config.run_dir / "data" / "items.parquet", *(config.path_of(source) for source in config.sources))
    inputs += tuple(kind.files().values())
    stage = Stage(config.run_dir, "sid", config.fingerprint_of_codes(kind), inputs)
    if not config.overwrite and stage.is_finished():
        screen.say(f"sid: finished already, nothing to do ({stage.folder})")
        return

    if kind.needs_spread:
        check_spread(vectors, config.sources)
    sizes = " x ".join(f"{size:,}" for size in level_sizes)
    screen.begin(f"semantic IDs for {dataset.n_items:,} items, {sizes} codes by {config.quantizer}")
    with (
        stage.building(config.overwrite, resumable=kind.is_trained, leader=rank == 0) as folder,
        screen.logging_to(folder / "log.txt") if rank == 0 else nullcontext(),
    ):
        quantizer = kind.fit(vectors, level_sizes, config.seed, folder if kind.is_trained else None, screen)
        codes_raw = kind.encode(quantizer, vectors, config.seed)
        leave_processes()
        if rank > 0:
            return  # the first process does the rest
        sids = semantic_ids(quantizer, vectors, codes_raw, unique, screen)
        sids.save(folder)
        figures = report(folder, sids, vectors, dataset, config.seed, kind)
        lines = [*summary(sids, figures), *kind.summary_lines(folder)]
    shutil.rmtree(stage.folder / CHECKPOINTS, ignore_errors=True)
    screen.summary("sid", [*lines, f"look at {stage.folder / 'report.html'}"])


def semantic_ids(
    quantizer: Quantizer, vectors: ItemVectors, codes_raw: np.ndarray, unique: str, screen: Screen | None = None
) -> SemanticIds:
    """The items' semantic IDs, told apart as `unique` says. codes_raw: int [N, L].

    A dedup token is one more level: its code is the item's place among those with equal codes, and its codebook is of zeros. So is
    an own token: its code is the item's number, and its codebook is of what the codes before it leave of each item.
    """
    from sidrec.tokenizer.semantic_ids import SemanticIds
    from sidrec.tokenizer.unique_sids import make_unique, places

    quantizer = replace(quantizer, scales=vectors.scales)
    codebooks = quantizer.codebooks.per_code(codes_raw)
    if unique == "own_token":
        residuals = np.concatenate([rows for _, rows in chunks(quantizer.latents(vectors))])
        residuals -= quantizer.codebooks.reconstruct(codes_raw)
        codes = np.column_stack([codes_raw, np.arange(len(codes_raw))]).astype(np.int32)
        return SemanticIds(codes, codes, [*codebooks, residuals.astype(np.float32)], quantizer)
    if unique == "none":
        return SemanticIds(codes_raw, codes_raw, codebooks, quantizer)
    if unique == "assign":
        codes = make_unique(quantizer.latents(vectors), codes_raw, quantizer.codebooks, screen)
        return SemanticIds(codes, codes_raw, codebooks, quantizer)
    assert unique == "dedup_token", unique
    place = places(codes_raw)
    nothing = np.zeros((max(2, int(place.max()) + 1), quantizer.codebooks.width), dtype=np.float32)
    codes, raw = (np.column_stack([codes_raw, last]).astype(np.int32) for last in (place, np.zeros_like(place)))
    return SemanticIds(codes, raw, [*codebooks, nothing], quantizer)


def report(
    folder: Path, sids: SemanticIds, vectors: ItemVectors, dataset: Dataset, seed: int, kind: Kind
) -> dict[str, Any]:
    """Write report.json and report.html into `folder`, and return the figures of report.json."""
    from sidrec.tokenizer.report.categories import categories_of
    from sidrec.tokenizer.report.figures import measure
    from sidrec.tokenizer.report.page import render

    categories = categories_of(dataset.items)
    figures = measure(vectors, sids, seed, categories)
    write_json(folder / "report.json", figures)
    curve = read_json(folder / "training.json") if kind.is_trained else None
    with atomic_path(folder / "report.html") as temporary:
        page = render(figures, sids, dataset.titles, seed, vectors, categories, curve, kind.report_tables(folder))
        temporary.write_text(page, encoding="utf-8")
    return figures


def summary(sids: SemanticIds, figures: dict[str, Any]) -> list[str]:
    """What was made, in sentences. figures: of report.json."""
    perplexities = ", ".join(f"{level['perplexity']:.0f}/{level['codes']}" for level in figures["levels"])
    sizes = " x ".join(f"{size:,}" for size in sids.level_sizes)
    lines = [
        f"{sids.n_items:,} items, {sizes} codes; in use (perplexity) {perplexities}; variance explained "
        f"{figures['levels'][-1]['variance_explained']:.1%}; {figures['items_changed']:,} items changed to be unique."
    ]
    if sids.n_distinct < sids.n_items:
        shared = sids.n_items - sids.n_distinct
        lines.append(f"{shared:,} items share their semantic ID: no later stage takes them.")
    return lines


if __name__ == "__main__":
    run_as_command(main)

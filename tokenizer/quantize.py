"""Item vectors → semantic IDs: `python -m sidrec.tokenizer.quantize --run_dir outputs/demo`. Reads `embeddings/`, writes `sid/`.

With `--quantizer rqkmeans`, several processes share the work: `accelerate launch --config_file
configs/accelerate/two_processes.yaml -m sidrec.tokenizer.quantize --run_dir outputs/demo`.

Puts the sources side by side, learns the quantizer that `--quantizer` names, gives every item a semantic ID of its own, and reports.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sidrec.data.dataset import Dataset
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.files import atomic_path, write_json
from sidrec.pipeline.stage import Stage
from sidrec.tokenizer.autoencoders.training import CHECKPOINT
from sidrec.tokenizer.config import TokenizerConfig
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors, chunks
from sidrec.tokenizer.embeddings.sources import read_sources
from sidrec.tokenizer.kmeans.distributed import join_processes, leave_processes
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers.given_codes import GivenCodes
from sidrec.tokenizer.quantizers.learn import check, learn_codes
from sidrec.tokenizer.quantizers.level_sizes import check_level_sizes, check_n_levels, choose_level_sizes
from sidrec.tokenizer.quantizers.quantizer_settings import KINDS, QuantizerSettings
from sidrec.tokenizer.report.categories import categories_of
from sidrec.tokenizer.report.figures import measure
from sidrec.tokenizer.report.lora import summary as lora_summary
from sidrec.tokenizer.report.page import render
from sidrec.tokenizer.semantic_ids import SemanticIds
from sidrec.tokenizer.unique_sids import make_unique, places

LEARNING_CURVES = ("training.json", "lora.json")  # what trained quantizers leave in the stage's folder


def semantic_ids(quantizer: Quantizer, vectors: ItemVectors, codes_raw: np.ndarray, unique: str) -> SemanticIds:
    """The items' semantic IDs, told apart as `unique` says. codes_raw: int [N, L].

    A dedup token is one more level: its code is the item's place among those with equal codes, and its codebook is of zeros. So is
    an own token: its code is the item's number, and its codebook is of what the codes before it leave of each item.
    """
    quantizer = replace(quantizer, scales=vectors.scales)
    codebooks = quantizer.codebooks.per_code(codes_raw)
    if unique == "own_token":
        left = np.concatenate([rows for _, rows in chunks(quantizer.latents(vectors))])
        left -= quantizer.codebooks.reconstruct(codes_raw)
        codes = np.column_stack([codes_raw, np.arange(len(codes_raw))]).astype(np.int32)
        return SemanticIds(codes, codes, [*codebooks, left.astype(np.float32)], quantizer)
    if unique == "none":
        return SemanticIds(codes_raw, codes_raw, codebooks, quantizer)
    if unique == "assign":
        codes = make_unique(quantizer.latents(vectors), codes_raw, quantizer.codebooks)
        return SemanticIds(codes, codes_raw, codebooks, quantizer)
    place = places(codes_raw)
    nothing = np.zeros((max(2, int(place.max()) + 1), quantizer.codebooks.width), dtype=np.float32)
    codes, raw = (np.column_stack([codes_raw, last]).astype(np.int32) for last in (place, np.zeros_like(place)))
    return SemanticIds(codes, raw, [*codebooks, nothing], quantizer)


def read_json(path: Path) -> Any:
    """What a JSON file holds; None when there is none: not every quantizer writes one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def main() -> None:
    config, *kinds = parse_configs((TokenizerConfig, *KINDS))
    settings = QuantizerSettings(config.quantizer, *kinds)
    rank = join_processes(config.quantizer)
    console = Console(quiet=rank > 0)
    run_dir = Path(config.run_dir)
    dataset = Dataset.load(run_dir)
    vectors = ItemVectors(read_sources(config, dataset.n_items), config.weights)  # [N, D]
    given = GivenCodes.read(config, *vectors.shape) if config.quantizer == "given" else None
    if given:
        level_sizes = given.level_sizes
        check_level_sizes(level_sizes, dataset.n_items, clustered=0, unique=config.unique == "assign")
    else:
        level_sizes = choose_level_sizes(config.level_sizes, settings, dataset.n_items, config.unique)
    check_n_levels(level_sizes, config.unique)
    check(settings, vectors, level_sizes)
    inputs = (run_dir / "data" / "items.parquet", *(config.path_of(source) for source in config.sources))
    inputs += settings.files() + config.given_files()
    stage = Stage(run_dir, "sid", config.sid_settings() | settings.recorded(), inputs)
    if not config.overwrite and stage.is_finished():
        console.print(f"{stage.folder}: finished before; nothing to do.")
        return

    if settings.is_trained:
        stage.begin(config.overwrite)  # the folder keeps checkpoints to resume from
    if given:
        quantizer, codes_raw = given.quantizer(vectors), given.codes
    else:
        folder = stage.folder if settings.is_trained else None
        quantizer, codes_raw = learn_codes(settings, vectors, level_sizes, config.seed, folder)
        leave_processes()
    if rank > 0:
        return  # the first process does the rest
    sids = semantic_ids(quantizer, vectors, codes_raw, config.unique)
    categories = categories_of(dataset.items)
    figures = measure(vectors, sids, config.seed, categories)

    if not settings.is_trained:
        stage.begin(config.overwrite)
    outputs = sids.save(stage.folder)
    outputs += [path for name in LEARNING_CURVES if (path := stage.folder / name).exists()]
    report, page = stage.folder / "report.json", stage.folder / "report.html"
    write_json(report, figures)
    with atomic_path(page) as temporary:
        training, lora = (read_json(stage.folder / name) for name in ("training.json", "lora.json"))
        html = render(figures, sids, dataset.titles, config.seed, vectors, categories, training, lora)
        temporary.write_text(html, encoding="utf-8")
    stage.finish(*outputs, report, page)
    shutil.rmtree(stage.folder / CHECKPOINT.parent, ignore_errors=True)
    summarise(console, stage.folder, sids, figures, lora)


def summarise(console: Console, folder: Path, sids: SemanticIds, figures: dict[str, Any], lora: Any) -> None:
    """Say what was made and where it is. figures: of report.json; lora: of lora.json, None where the quantizer writes none."""
    perplexities = ", ".join(f"{level['perplexity']:.0f}/{level['codes']}" for level in figures["levels"])
    sizes = " x ".join(f"{size:,}" for size in sids.level_sizes)
    console.print(
        f"{folder}: {sids.n_items:,} items, {sizes} codes; in use (perplexity) {perplexities}; variance explained "
        f"{figures['levels'][-1]['variance_explained']:.1%}; {figures['items_changed']:,} items changed to be unique.",
        soft_wrap=True,
    )
    if lora:
        console.print(lora_summary(lora), soft_wrap=True)
    if sids.n_distinct < sids.n_items:
        console.print(f"{sids.n_items - sids.n_distinct:,} items share their semantic ID: no later stage takes them.")
    console.print(f"Look at {folder / 'report.html'}")


if __name__ == "__main__":
    run_as_command(main)

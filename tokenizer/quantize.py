"""Item vectors → semantic IDs: `python -m tokenizer.quantize --run_dir outputs/demo`. Reads `embeddings/`, writes `sid/`.

Puts the sources side by side, learns the quantizer that `--quantizer` names, gives every item a semantic ID of its own, and reports.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data.config import parse_configs
from data.dataset import Dataset
from data.stage import InputError, Stage, atomic_path, require_finished, run_as_command, write_json
from tokenizer.categories import categories_of
from tokenizer.config import COMPUTED_SOURCES, TokenizerConfig
from tokenizer.item_vectors import ItemVectors
from tokenizer.learn import check, learn
from tokenizer.quantizer_settings import KINDS, QuantizerSettings
from tokenizer.report import measure
from tokenizer.report_page import render
from tokenizer.semantic_ids import SemanticIds
from tokenizer.training import CHECKPOINT
from tokenizer.unique_sids import make_unique

MOST_ITEMS_OF_TWO_LEVELS = 32_768
LEARNING_CURVES = ("training.json", "lora.json")  # what trained quantizers leave in the stage's folder


def default_level_sizes(n_items: int) -> list[int]:
    """The level sizes of a catalogue whose owner names none: few levels, because every level is one more token an item."""
    return fitting_level_sizes(n_items, n_levels=2 if n_items <= MOST_ITEMS_OF_TWO_LEVELS else 3)


def fitting_level_sizes(n_items: int, n_levels: int) -> list[int]:
    """Equal level sizes that suit a catalogue: a power of two, about 16 items per code, room for every item."""
    size = 2
    while size**n_levels < n_items or size * 2 <= min(256, n_items // 16):
        size *= 2
    return [min(size, n_items)] * n_levels


def check_level_sizes(level_sizes: list[int], n_items: int) -> None:
    """Raises InputError when a level has more codes than there are items, or when there are fewer paths than items."""
    fitting = fitting_level_sizes(n_items, len(level_sizes))
    remedy = f"--level_sizes {' '.join(map(str, fitting))} would fit"
    for level, size in enumerate(level_sizes, start=1):
        if size > n_items:
            raise InputError(
                f"the catalogue has {n_items} items, fewer than the {size} codes of level {level}; {remedy}."
            )
    if math.prod(level_sizes) < n_items:
        product = " x ".join(map(str, level_sizes))
        raise InputError(
            f"level_sizes give {product} = {math.prod(level_sizes)} semantic IDs, fewer than the {n_items} items; {remedy}."
        )


def read_source(path: Path, n_items: int) -> np.ndarray:
    """A source's vectors, [N, D], left on disk and checked: one row per item, all numbers finite."""
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(
            f"{path} is not an array file that numpy can read ({error}); save it with numpy.save."
        ) from error
    if vectors.ndim != 2 or len(vectors) != n_items or not np.issubdtype(vectors.dtype, np.number):
        raise InputError(
            f"{path} holds {vectors.dtype} of shape {list(vectors.shape)}; it must hold numbers, one row for each of the "
            f"{n_items} items, in the order of items.parquet."
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(
            f"{path} holds NaN or infinity in row {bad[0]} (and {len(bad) - 1} other rows); make the file again."
        )
    return vectors


def read_sources(config: TokenizerConfig, n_items: int) -> list[np.ndarray]:
    """Every source's vectors, [N, D_s] each. Raises InputError when one is missing (naming the command) or wrong."""
    command = f"python -m tokenizer.embed --run_dir {config.run_dir} --sources {' '.join(config.sources)}"
    if any(source in COMPUTED_SOURCES for source in config.sources):
        require_finished(Path(config.run_dir), "embeddings", command)
    for source in config.sources:
        path = config.path_of(source)
        if not path.is_file():
            remedy = f"run `{command} --overwrite true`" if source in COMPUTED_SOURCES else "correct --sources"
            raise InputError(f"{path} does not exist; {remedy} first.")
    return [read_source(config.path_of(source), n_items) for source in config.sources]


def read_json(path: Path) -> Any:
    """What a JSON file holds; None when there is none: not every quantizer writes one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def main() -> None:
    config, *kinds = parse_configs((TokenizerConfig, *KINDS))
    settings = QuantizerSettings(config.quantizer, *kinds)
    console = Console()
    run_dir = Path(config.run_dir)
    dataset = Dataset.load(run_dir)
    level_sizes = config.level_sizes or default_level_sizes(dataset.n_items)
    check_level_sizes(level_sizes, dataset.n_items)
    vectors = ItemVectors(read_sources(config, dataset.n_items), config.weights)  # [N, D]
    check(settings, vectors, level_sizes)
    inputs = (run_dir / "data" / "items.parquet", *(config.path_of(source) for source in config.sources))
    inputs += settings.files()
    stage = Stage(run_dir, "sid", config.sid_settings() | settings.recorded(), inputs)
    if not config.overwrite and stage.is_finished():
        console.print(f"{stage.folder}: finished before; nothing to do.")
        return

    if settings.is_trained:
        stage.begin(config.overwrite)  # the folder keeps checkpoints to resume from
    quantizer = learn(settings, vectors, level_sizes, config.seed, stage.folder if settings.is_trained else None)
    codes_raw = quantizer.encode(vectors)  # [N, L]
    codes = make_unique(quantizer.latents(vectors), codes_raw, quantizer.codebooks)
    sids = SemanticIds(codes, codes_raw, quantizer.codebooks.per_code(codes_raw), quantizer)
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
    perplexities = ", ".join(f"{level['perplexity']:.0f}/{level['codes']}" for level in figures["levels"])
    console.print(
        f"{stage.folder}: {sids.n_items:,} items, {sids.n_levels} codes each; codes in use (perplexity) {perplexities}; variance "
        f"explained {figures['levels'][-1]['variance_explained']:.1%}; {figures['items_changed']:,} items changed to be unique.",
        soft_wrap=True,
    )
    console.print(f"Look at {page}")


if __name__ == "__main__":
    run_as_command(main)

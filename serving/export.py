"""Write a trained model in the file of another tool: GGUF for llama.cpp, ONNX for ONNX Runtime.

sidrec export --run_dir outputs/pretrained --format gguf
sidrec export --run_dir outputs/ml-100k --format onnx

transformers, vLLM and SGLang need no such file: they open the model's folder as it is (docs/serving_elsewhere.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage

PACKAGES = {"gguf": ("gguf",), "onnx": ("onnx", "onnxscript")}  # which must be installed to write the format
INSTALL = 'pip install "sidrec[export]"'


@dataclass
class ExportConfig:
    """Write a run's model into the run directory's export/FORMAT/."""

    run_dir: Path = field(default=Path("outputs/demo"), metadata={"help": "Run directory with a trained model."})
    model: str | None = field(
        default=None,
        metadata={"help": "Which model. Left out: rl where it is finished, else sft.", "choices": ("sft", "rl")},
    )
    format: str = field(
        default="gguf",
        metadata={
            "help": "gguf: a language model of the Llama kind, such as SmolLM2, with a grammar of its items; onnx: an RQ-Transformer.",
            "choices": tuple(PACKAGES),
        },
    )
    weights: str = field(
        default="float16", metadata={"help": "Numbers of a GGUF file's matrices.", "choices": ("float16", "float32")}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the files of another model or training."})


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(ExportConfig, arguments)
    missing = [package for package in PACKAGES[config.format] if find_spec(package) is None]
    if missing:
        raise InputError(
            f"--format {config.format} needs the package {missing[0]}, which is not installed; run `{INSTALL}`."
        )
    from sidrec.serving.bundle import last_trained  # with torch, for which --help does not wait

    name = config.model or last_trained(config.run_dir)
    chosen = {"model": name} | ({"weights": config.weights} if config.format == "gguf" else {})
    stage = Stage(config.run_dir, f"export/{config.format}", chosen, (config.run_dir / name,), working=())
    screen = Screen("export")
    if not config.overwrite and stage.is_finished():
        screen.say(f"export: finished already, nothing to do ({stage.folder})")
        return
    with stage.building(config.overwrite) as folder:
        FORMATS[config.format](config, name, folder)
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    screen.summary("export", [f"{stage.folder / file}: {size / 1e6:.1f} MB" for file, size in files.items()])


def export_gguf(config: ExportConfig, name: str, folder: Path) -> None:
    from sidrec.decoding.recommender import SIDS_FOLDER, STAGE_COMMANDS, TRIE_FILE
    from sidrec.decoding.renderer import Renderer
    from sidrec.decoding.trie_file import open_trie
    from sidrec.pipeline.stage import require_finished
    from sidrec.serving.gguf_file import write_gguf, write_grammar
    from sidrec.tokenizer.semantic_ids import SemanticIds

    model = require_finished(config.run_dir, name, f"{STAGE_COMMANDS[name]} --run_dir {config.run_dir}")
    renderer = Renderer.load(model, SemanticIds.read(model / SIDS_FOLDER))
    write_gguf(model, folder / "model.gguf", config.weights)
    write_grammar(open_trie(model / SIDS_FOLDER / TRIE_FILE), renderer.vocabulary, folder / "sids.gbnf")


def export_onnx(config: ExportConfig, name: str, folder: Path) -> None:
    from sidrec.decoding.recommender import Recommender
    from sidrec.decoding.rq_transformer.model import rq_transformer_of
    from sidrec.serving.onnx_graph import write_onnx

    recommender = Recommender.load(config.run_dir, name)
    scorer = rq_transformer_of(recommender.model)
    if scorer is None:
        raise InputError(
            f"--format onnx is for an RQ-Transformer, which scores all items at once; {config.run_dir / name} is another model, and other "
            "engines open its folder as it is (docs/serving_elsewhere.md)."
        )
    write_onnx(scorer.cpu(), recommender.renderer.max_items, folder / "model.onnx")


FORMATS: dict[str, Callable[[ExportConfig, str, Path], None]] = {"gguf": export_gguf, "onnx": export_onnx}


if __name__ == "__main__":
    run_as_command(main)

"""What makes vectors for items that come later as those of the catalogue were made; it lies beside the vectors.

encoders.json          format_version, and of every source that this project computes, the kind of its encoder and its settings
encoders.safetensors   the encoders' arrays, as `source.array`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, read_json, write_json
from sidrec.tokenizer.embeddings.collaborative import Unknown
from sidrec.tokenizer.embeddings.from_text import FromText
from sidrec.tokenizer.embeddings.text import TextModel, TfidfSvd

FORMAT_VERSION = 1
SETTINGS, ARRAYS = ENCODER_FILES = ("encoders.json", "encoders.safetensors")
KINDS: dict[str, type[TfidfSvd] | type[TextModel] | type[Unknown] | type[FromText]] = {
    "tfidf_svd": TfidfSvd,
    "text_model": TextModel,
    "unknown": Unknown,
    "from_text": FromText,
}
AGAIN = "make the vectors again with `sidrec tokenize --overwrite true`, and what was made from them"


class Encoder(Protocol):
    """Vectors from texts alone."""

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 [n, D], a row for each text."""
        ...

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]: ...


def save_encoders(encoders: dict[str, Encoder], folder: Path) -> None:
    """Write the encoders of the sources, by name, each file atomically."""
    names: dict[type, str] = {kind: name for name, kind in KINDS.items()}
    settings: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for source, encoder in encoders.items():
        of_source, its_arrays = encoder.parts()
        settings[source] = {"kind": names[type(encoder)], "settings": of_source}
        arrays |= {f"{source}.{name}": np.ascontiguousarray(array) for name, array in its_arrays.items()}
    write_json(folder / SETTINGS, {"format_version": FORMAT_VERSION, "sources": settings})
    with atomic_path(folder / ARRAYS) as temporary:
        temporary.write_bytes(save(arrays))


def load_encoders(folder: Path) -> dict[str, Encoder]:
    """What `save_encoders` wrote, by source. Raises InputError where it is missing, damaged or of another format."""
    path = folder / SETTINGS
    if not path.is_file():
        raise InputError(f"{path} does not exist: the vectors were made without their encoders being saved; {AGAIN}.")
    saved = read_json(path)
    version = saved.get("format_version") if isinstance(saved, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format {version}, this version reads {FORMAT_VERSION}; {AGAIN}.")
    encoders: dict[str, Encoder] = {}
    try:
        arrays = load_file(folder / ARRAYS)
        for source, made in saved["sources"].items():
            begin = f"{source}."
            of_source = {name.removeprefix(begin): array for name, array in arrays.items() if name.startswith(begin)}
            encoders[source] = KINDS[made["kind"]].restored(made["settings"], of_source)
        for source, encoder in encoders.items():
            if isinstance(encoder, FromText):
                text = encoders["text"]
                assert isinstance(text, TfidfSvd | TextModel)
                encoders[source] = encoder.with_text(text)
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder / ARRAYS} does not fit {path} ({' '.join(str(error).split())}); {AGAIN}.") from error
    return encoders

"""What makes vectors of items that come later: saved beside the vectors, and the same bits after loading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from run_dirs import N_ITEMS, make_run_dir, small_dataset
from safetensors.numpy import load_file

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer import embed
from sidrec.tokenizer.embeddings.encoders import ENCODER_FILES, load_encoders
from sidrec.tokenizer.embeddings.unit_rows import EMPTY_NORM


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run_dir(tmp_path_factory.mktemp("encoders") / "run")
    embed.main(["--run_dir", str(run), "--text_dim", "8", "--collaborative_dim", "8"])
    return run


def test_saved_encoders_give_the_training_items_their_vectors_bit_for_bit(run_dir: Path) -> None:
    texts = small_dataset().items["text"].to_list()
    encoder = load_encoders(run_dir / "embeddings")["text"]
    vectors = np.load(run_dir / "embeddings" / "text.npy")
    assert encoder.encode(texts).tobytes() == vectors.tobytes()
    for item in (0, 17, N_ITEMS - 1):
        assert encoder.encode([texts[item]]).tobytes() == vectors[item].tobytes()


def test_an_item_without_interactions_has_a_stated_collaborative_vector_where_there_are_no_texts(
    tmp_path: Path,
) -> None:
    run = make_run_dir(tmp_path / "run")
    embed.main(["--run_dir", str(run), "--sources", "collaborative", "--collaborative_dim", "8"])
    vectors = load_encoders(run / "embeddings")["collaborative"].encode(["any text", ""])
    stated = load_file(run / "embeddings" / ENCODER_FILES[1])["collaborative.vector"]
    assert vectors.tobytes() == np.stack([stated, stated]).tobytes()
    assert vectors.shape[1] == np.load(run / "embeddings" / "collaborative.npy").shape[1]
    assert np.linalg.norm(stated) == pytest.approx(EMPTY_NORM, rel=1e-4)


def test_an_item_without_interactions_has_the_collaborative_vector_of_its_text(run_dir: Path) -> None:
    vectors = np.load(run_dir / "embeddings" / "collaborative.npy")  # of rings of ten, one a colour
    new = load_encoders(run_dir / "embeddings")["collaborative"].encode(["The red parasol", "The blue parasol"])
    cosines = new @ vectors.T
    rings = np.arange(N_ITEMS) // 10
    assert cosines[0][rings == 0].mean() > cosines[0][rings != 0].mean() + 0.2
    assert cosines[1][rings == 1].mean() > cosines[1][rings != 1].mean() + 0.2


def test_the_stages_manifest_lists_the_encoders(run_dir: Path) -> None:
    listed = json.loads((run_dir / "embeddings" / "manifest.json").read_text())["outputs"]
    assert {*ENCODER_FILES, "text.npy", "collaborative.npy"} <= listed.keys()


def test_missing_older_and_damaged_encoders_are_a_sentence(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"encoders.json does not exist.*sidrec tokenize --overwrite true"):
        load_encoders(tmp_path)
    settings, arrays = ((run_dir / "embeddings" / name).read_bytes() for name in ENCODER_FILES)
    (tmp_path / "encoders.json").write_bytes(settings.replace(b'"format_version": 1', b'"format_version": 0'))
    with pytest.raises(InputError, match="has format 0, this version reads 1"):
        load_encoders(tmp_path)
    (tmp_path / "encoders.json").write_bytes(settings)
    for content in (None, arrays[:100], arrays[: len(arrays) // 2]):
        if content is not None:
            (tmp_path / "encoders.safetensors").write_bytes(content)
        with pytest.raises(InputError, match="does not fit"):
            load_encoders(tmp_path)

"""What makes a quantizer a kind: one file and one row; its own flags; every setting in the fingerprint; files by their content."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from test_tokenizer_stage import N_ITEMS, small_dataset, write_data_stage

from sidrec.pipeline.config import settings_of
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.ranges import check_least
from sidrec.tokenizer import embed, quantize
from sidrec.tokenizer.codebooks import Codebooks
from sidrec.tokenizer.config import NOT_DECIDING, TokenizerConfig, parse_arguments
from sidrec.tokenizer.embeddings.item_vectors import Rows
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers import QUANTIZERS, Kind
from sidrec.tokenizer.semantic_ids import SemanticIds

# ---- a whole kind: this class, and a row in QUANTIZERS


@dataclass
class Signs(Kind):
    """Each level codes the sign of one dimension: two codes a level."""

    summary: ClassVar[str] = "the signs of the first dimensions"

    length: float = field(default=1.0, metadata={"help": "How long the vector of a sign is."})

    def __post_init__(self) -> None:
        check_least(self, "length", 0.0)

    def fit(
        self, vectors: Rows, level_sizes: list[int], seed: int, folder: Any = None, screen: Any = None
    ) -> Quantizer:
        books = []
        for level in range(len(level_sizes)):
            book = np.zeros((2, vectors.shape[1]), dtype=np.float32)
            book[:, level] = -self.length, self.length
            books.append(book)
        return Quantizer(Codebooks(books))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_data_stage(tmp_path / "run", small_dataset())
    np.save(tmp_path / "file.npy", np.random.default_rng(0).standard_normal((N_ITEMS, 8)))
    return tmp_path / "run"


def test_a_new_kind_is_one_file_and_one_row(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(QUANTIZERS, "signs", Signs)
    file = run_dir.parent / "file.npy"
    flags = ["--run_dir", str(run_dir), "--sources", str(file), "--quantizer", "signs", "--level_sizes", *["2"] * 6]
    quantize.main([*flags, "--length", "0.5"])
    assert "60 items, 2 x 2 x 2 x 2 x 2 x 2 codes by signs" in capsys.readouterr().out
    sids = SemanticIds.load(run_dir)
    np.testing.assert_array_equal(sids.codes_raw, np.load(file)[:, :6] > 0)
    assert sids.codebooks[0][1, 0] == 0.5
    assert len(np.unique(sids.codes, axis=0)) == N_ITEMS
    with pytest.raises(InputError, match=r"sid was made with length=0.5, not 0.25"):
        quantize.main([*flags, "--length", "0.25"])
    with pytest.raises(InputError, match="--lenght is not a setting; the nearest one is --length"):
        quantize.main([*flags, "--lenght", "0.5"])
    with pytest.raises(InputError, match="--clusters is not a setting"):
        quantize.main([*flags, "--clusters", "plain"])
    with pytest.raises(InputError, match="length is -1"):
        quantize.main([*flags, "--length", "-1"])
    with pytest.raises(SystemExit):
        quantize.main(["--quantizer", "signs", "--help"])
    shown = capsys.readouterr().out
    assert "--length X" in shown
    assert "How long the vector of a sign is." in shown
    assert "--clusters" not in shown


# ---- flags


@pytest.mark.parametrize("name", QUANTIZERS)
def test_help_shows_the_common_settings_and_those_of_the_kind(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        embed.main(["--quantizer", name, "--help-all"])
    shown = {line[2:].split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("--")}
    assert shown == {"config"} | {
        setting.name for kind in (TokenizerConfig, QUANTIZERS[name]) for setting in fields(kind)
    }
    with pytest.raises(SystemExit):
        embed.main(["--quantizer", name, "--help"])
    short = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--")]
    assert len(short) <= 36
    for other in QUANTIZERS:
        assert QUANTIZERS[other].summary


def test_help_imports_no_library_that_takes_seconds() -> None:
    program = (
        "import sys; from sidrec.tokenizer import add_items, compare, embed, quantize\n"
        "for module in (add_items, compare, embed, quantize):\n"
        "    try: module.main(['--help'])\n"
        "    except SystemExit: pass\n"
        "print(sorted({'torch', 'polars', 'transformers', 'trl', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_the_last_settings_of_another_quantizer_do_not_count(run_dir: Path) -> None:
    file = str(run_dir.parent / "file.npy")
    flags = ["--run_dir", str(run_dir), "--sources", file, "--level_sizes", "8", "8"]
    quantize.main([*flags, "--quantizer", "rqkmeans", "--clusters", "balanced", "--slack", "1.5"])
    again = ["--run_dir", str(run_dir), "--sources", file]
    config, kind = parse_arguments(again, stage="sid")
    assert (config.level_sizes, kind.slack) == ([8, 8], 1.5)  # type: ignore[attr-defined]
    config, kind = parse_arguments([*again, "--quantizer", "product"], stage="sid")
    assert (config.level_sizes, kind.clusters, kind.slack) == ([], "relaxed", 1.0)  # type: ignore[attr-defined]


# ---- the fingerprint

CHANGED: dict[str, Any] = {
    "sources": ["text"],
    "weights": [0.5, 1.0],
    "unique": "none",
    "level_sizes": [4, 4],
    "text_encoder": "a/model",
    "clusters": "balanced",
    "reconstruction": "l1",
    "keep": "last",
    "codebook_init": "random",
    "commitment_levels": "first",
    "level_reduction": "sum",
    "codebook_update": "ema",
    "decoder": "mlp",
    "encoder": "mlp",
    "share_a": "all",
    "base": "frozen",
    "penalty_reduction": "sum",
    "assignment": "soft",
    "soft_weights": "sinkhorn",
    "soft_levels": [0],
    "diversity_form": "variance",
    "reset_to": "kmeans",
    "condition_form": "one_hot",
    "join_groups": "sum",
    "fsq_form": "residual",
    "fsq_levels": [4, 4],
    "fsq_size": 512,
    "fsq_grid": "symmetric",
    "hidden_sizes": [8],
    "codes_file": "codes.npy",
    "codebooks_file": "books.npz",
    "temperature_end": 0.02,
    "dropout": 0.1,
}
NEEDS: dict[str, dict[str, Any]] = {  # settings that have an effect only beside another
    "slack": {"clusters": "balanced"},
    "ema_decay": {"codebook_update": "ema"},
    "threshold_dead_code": {"reset_every": 5},
    "sinkhorn_iterations": {"sinkhorn_epsilon": 0.1},
    "top_k": {"assignment": "topk"},
    "soft_weights": {"assignment": "soft"},
    "soft_levels": {"assignment": "soft"},
    "diversity_form": {"diversity_weight": 0.1},
    "reset_to": {"reset_every": 5},
    "condition_form": {"condition_on_previous": True},
    "join_groups": {"groups": 2},
    "temperature_start": {"assignment": "soft"},
    "temperature_end": {"assignment": "soft"},
    "relative_limit": {"relative_weight": 0.1},
    "second_commitment_weight": {"assignment": "soft"},
}


def changed(name: str, value: Any) -> Any:
    if name in CHANGED:
        return CHANGED[name]
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), f"give {name} another value in CHANGED"
    return value / 2 + 0.25 if 0 < value < 1 else value + 1


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_setting_of_a_kind_decides(name: str) -> None:
    config = TokenizerConfig(quantizer=name)
    for setting in settings_of(QUANTIZERS[name]):
        needs = NEEDS.get(setting.name, {})
        before = QUANTIZERS[name](**needs)
        after = QUANTIZERS[name](**needs, **{setting.name: changed(setting.name, setting.default)})
        assert config.fingerprint_of_codes(before) != config.fingerprint_of_codes(after), setting.name


def test_every_common_setting_decides_or_stands_on_the_short_list() -> None:
    kind, before = QUANTIZERS["rqkmeans"](), TokenizerConfig()
    for setting in settings_of(TokenizerConfig):
        if setting.name in ("run_dir", "quantizer"):
            value: Any = Path("elsewhere") if setting.name == "run_dir" else "product"
        else:
            value = changed(setting.name, setting.default)
        after = TokenizerConfig(**{setting.name: value})
        of_vectors = before.fingerprint_of_vectors() != after.fingerprint_of_vectors()
        of_codes = before.fingerprint_of_codes(kind) != after.fingerprint_of_codes(kind)
        assert (of_vectors or of_codes) == (setting.name not in NOT_DECIDING), setting.name
    assert set(NOT_DECIDING) == {"run_dir", "overwrite", "encoder_batch_size"}


def test_files_and_runs_may_move(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same vectors and codebooks under other names and elsewhere are the same experiment; other numbers are not."""
    books = {f"codebook_{level}": np.random.default_rng(level).normal(size=(8, 8)) for level in range(2)}
    np.savez(run_dir.parent / "books.npz", **books)
    short = ["--quantizer", "rqkmeans_plus", "--level_sizes", "8", "8", "--hidden_sizes", "4", "--training_steps", "4"]
    short += ["--warmup_steps", "1"]

    def flags(run: str, vectors: str, start: str) -> list[str]:
        top = run_dir.parent
        return [
            "--run_dir",
            str(top / run),
            "--sources",
            str(top / vectors),
            "--codebook_init",
            str(top / start),
            *short,
        ]

    quantize.main(flags("run", "file.npy", "books.npz"))
    assert str(run_dir.parent) not in (run_dir / "sid" / "manifest.json").read_text()
    for old, new in (("file.npy", "x.npy"), ("books.npz", "y.npz"), ("run", "moved")):
        (run_dir.parent / old).rename(run_dir.parent / new)
    capsys.readouterr()
    quantize.main(flags("moved", "x.npy", "y.npz"))
    assert "sid: finished already, nothing to do (" in capsys.readouterr().out
    np.savez(run_dir.parent / "y.npz", **{key: book + 1 for key, book in books.items()})
    with pytest.raises(InputError, match=r"made from another .*books.npz than y.npz now"):
        quantize.main(flags("moved", "x.npy", "y.npz"))

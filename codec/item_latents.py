"""The items of a recommender's run as a codec sees them: vectors and codes that the tokenizer reads, and what the codes say.

sidrec codec items --run_dir outputs/demo --codec outputs/codec --to outputs/demo_items

mean.npy      float32 [N, latent_dim]: the mean of the latents of an item's text
first.npy     float32 [N, latent_dim]: its first latent
codes.npy     int64 [N, L]: the codes of its first latent
meanings.csv  item_id, title, what the decoder writes from the codes of all its latents, and the share of the title that comes back

Rows are in the order of items.parquet. An item without text is the token that ends a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import MANIFEST
from sidrec.tokenizer.quantizers.level_sizes import LEVEL_LETTERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sidrec.codec.completion import TextCodec
    from sidrec.codec.rq_vae import RQVAE
    from sidrec.data.dataset import Dataset

TOKENS_AT_ONCE = 1 << 14  # of a batch, padding included


@dataclass
class ItemsConfig:
    """Write the items of a run as vectors and codes of a codec, and what their codes say."""

    to: Path = field(metadata={"help": "Folder to write mean.npy, first.npy, codes.npy and meanings.csv into."})
    run_dir: Path = field(
        default=Path("outputs/demo"), metadata={"help": "Run directory of the recommender; reads data/."}
    )
    codec: Path = field(
        default=Path("outputs/codec"), metadata={"help": "Run directory of the codec, with text/ and codec/."}
    )


@dataclass(frozen=True)
class ItemLatents:
    """mean, first: float32 [N, latent_dim]. codes: int64 [T, L] of each item, T its latents, one at least."""

    mean: np.ndarray
    first: np.ndarray
    codes: list[np.ndarray]

    @property
    def first_codes(self) -> np.ndarray:
        """int64 [N, L]: of each item's first latent."""
        return np.stack([codes[0] for codes in self.codes])


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(ItemsConfig, arguments)
    refuse_stage_folder(config.to)
    import torch  # after --help, which shall be fast

    from sidrec.codec.completion import TextCodec
    from sidrec.data.dataset import Dataset

    dataset, codec, screen = Dataset.load(config.run_dir), TextCodec.open(config.codec), Screen("codec items")
    codec.codec.to("cuda" if torch.cuda.is_available() else "cpu")
    screen.begin(f"latents of {dataset.n_items:,} items")
    rows = tokens_of(codec, dataset.items["text"].fill_null("").to_list())
    latents = item_latents(codec.codec, rows, screen)
    texts = decoded_texts(codec, latents.codes, screen)
    titles = dataset.items["title"].fill_null("").to_list()
    shares = shares_back(codec.tokenizer, titles, texts)
    by_chance = shares_back(codec.tokenizer, titles, [*texts[1:], texts[0]])
    write(config.to, dataset, latents, texts, shares)
    screen.summary("codec items", summary(config, latents, shares, by_chance, codec.codec.quantizer.sizes))


def refuse_stage_folder(folder: Path) -> None:
    """Raises InputError where files would lie in a stage's folder, or where the folder is a file."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--to {folder} is a file; name a folder.")
    resolved = folder.resolve()
    for above in (resolved, *resolved.parents):
        if (above / MANIFEST).exists():
            raise InputError(
                f"--to {folder} lies in {above}, which a stage writes and may delete; name another folder."
            )


def tokens_of(codec: TextCodec, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text; of an empty one the token that ends a text."""
    from sidrec.codec.word_pieces import token_ids

    return [tokens or [codec.stop] for tokens in token_ids(codec.tokenizer, texts)]


def batches(lengths: Sequence[int]) -> list[np.ndarray]:
    """Places of all rows, rows of like lengths together, at most TOKENS_AT_ONCE tokens a batch with padding, or one row."""
    order, places = np.argsort(np.asarray(lengths), kind="stable"), []
    start = 0
    for place, row in enumerate(order):
        if place > start and (place + 1 - start) * lengths[row] > TOKENS_AT_ONCE:
            places.append(order[start:place])
            start = place
    return [*places, order[start:]]


def item_latents(codec: RQVAE, rows: Sequence[Sequence[int]], screen: Screen) -> ItemLatents:
    """The latents of rows of tokens, each as it is alone. codec: in eval mode."""
    import torch

    device = next(codec.parameters()).device
    mean = np.empty((len(rows), codec.network.latent_dim), dtype=np.float32)
    first, codes = np.empty_like(mean), [np.empty(0, dtype=np.int64)] * len(rows)
    with screen.bar("encoding", len(rows)) as bar, torch.no_grad():
        for places in batches([len(row) for row in rows]):
            lengths = torch.tensor([len(rows[place]) for place in places], device=device)
            ids = torch.full((len(places), int(lengths.max())), codec.pad, dtype=torch.int64, device=device)
            for at, place in enumerate(places):
                ids[at, : len(rows[place])] = torch.tensor(rows[place], device=device)
            latents = codec.encoder(ids, lengths)
            n_latents = codec.latent_lengths(lengths)
            exists = torch.arange(latents.shape[1], device=device) < n_latents[:, None]
            chosen = codec.quantizer(latents.flatten(0, 1)).codes.view(*latents.shape[:2], -1).cpu().numpy()
            mean[places] = (latents * exists[..., None]).sum(1).div(n_latents[:, None]).float().cpu().numpy()
            first[places] = latents[:, 0].float().cpu().numpy()
            for at, (place, n) in enumerate(zip(places, n_latents.tolist(), strict=True)):
                codes[place] = chosen[at, :n]
            bar.advance(len(places))
    return ItemLatents(mean, first, codes)


def decoded_texts(codec: TextCodec, codes: Sequence[np.ndarray], screen: Screen) -> list[str]:
    """The text of each item's codes, int64 [T, L]."""
    import torch

    network = codec.codec
    device, texts = next(network.parameters()).device, [""] * len(codes)
    lengths = [len(each) * network.compression for each in codes]
    with screen.bar("decoding", len(codes)) as bar:
        for places in batches(lengths):
            n_latents = torch.tensor([len(codes[place]) for place in places], device=device)
            padded = torch.zeros(len(places), int(n_latents.max()), codes[0].shape[1], dtype=torch.int64, device=device)
            for at, place in enumerate(places):
                padded[at, : len(codes[place])] = torch.from_numpy(codes[place])
            for place, tokens in zip(places, network.decode(padded, n_latents).tolist(), strict=True):
                texts[place] = codec.text(tokens[: lengths[place]])
            bar.advance(len(places))
    return texts


def shares_back(tokenizer: PreTrainedTokenizerBase, titles: Sequence[str], texts: Sequence[str]) -> list[float | None]:
    """Of each title the share of its word pieces that the text holds, one as often at most as it is there; None of an empty title.

    A title is read as within a text, after a space, so that its first word has the pieces that it has elsewhere.
    """
    shares: list[float | None] = []
    for title, text in zip(titles, texts, strict=True):
        wanted, written = (
            Counter(tokenizer(f" {words.strip()}", add_special_tokens=False)["input_ids"]) for words in (title, text)
        )
        shares.append((wanted & written).total() / wanted.total() if title.strip() else None)
    return shares


def write(
    folder: Path, dataset: Dataset, latents: ItemLatents, texts: Sequence[str], shares: Sequence[float | None]
) -> None:
    """The four files, each atomically."""
    import polars as pl

    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"mean": latents.mean, "first": latents.first, "codes": latents.first_codes}
    for name, array in arrays.items():
        with atomic_path(folder / f"{name}.npy") as temporary, temporary.open("wb") as handle:
            np.save(handle, array)
    meanings = dataset.items.select("item_id", "title").with_columns(
        decoded=pl.Series(texts, dtype=pl.String), title_share=pl.Series(shares, dtype=pl.Float64)
    )
    with atomic_path(folder / "meanings.csv") as temporary:
        meanings.write_csv(temporary, float_precision=4)


def mean_share(shares: Sequence[float | None]) -> float | None:
    """The mean over titles; None where no item has one."""
    told = [share for share in shares if share is not None]
    return sum(told) / len(told) if told else None


def summary(
    config: ItemsConfig,
    latents: ItemLatents,
    shares: Sequence[float | None],
    by_chance: Sequence[float | None],
    level_sizes: Sequence[int],
) -> list[str]:
    """What came of it, and the command that reads each file. by_chance: shares of each title in the next item's text."""
    codes, back, chance = latents.first_codes, mean_share(shares), mean_share(by_chance)
    words = "no item has a title"
    if back is not None:
        words = f"{back:.1%} of a title's word pieces come back (mean; {chance:.1%} stand in the text of the next item, by chance)"
    tokenize = f"sidrec tokenize --run_dir {config.run_dir}"
    vectors = [
        f"{config.to / name}: {what}, vectors of length {latents.mean.shape[1]}; "
        f"{tokenize} --sources {config.to / name} --weights 1"
        for name, what in (("mean.npy", "the mean of an item's latents"), ("first.npy", "its first latent"))
    ]
    n_different, file = len(np.unique(codes, axis=0)), config.to / "codes.npy"
    of_codes = f"{file}: the codes of its first latent, {n_different:,} different ones; "
    if len(level_sizes) > len(LEVEL_LETTERS):
        of_codes += f"{len(level_sizes)} levels, and a semantic ID has at most {len(LEVEL_LETTERS)}"
    else:
        of_codes += (
            f"{tokenize} --sources {config.to / 'first.npy'} --weights 1 --quantizer given --codes_file {file} "
            f"--level_sizes {' '.join(map(str, level_sizes))}"
        )
    made = any((config.run_dir / stage / MANIFEST).exists() for stage in ("embeddings", "sid"))
    again = [f"{config.run_dir} has been tokenized before: add --overwrite true"] * made
    return [*vectors, of_codes, *again, f"{config.to / 'meanings.csv'}: {words}"]


if __name__ == "__main__":
    run_as_command(main)

"""A run's items by a codec: each as it is alone, in the run's order, in files that the tokenizer reads."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from codec_cases import shaken
from run_dirs import make_run_dir, small_dataset

from sidrec.__main__ import main
from sidrec.codec import item_latents
from sidrec.codec.completion import TextCodec
from sidrec.codec.rq_vae import RQVAE
from sidrec.codec.settings import CodecNetworkSettings, CodecQuantizerSettings
from sidrec.codec.text_rows import TextRows
from sidrec.data.dataset import Dataset
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.stage import Stage

SIZES, WIDTH = [16, 8], 16


def make_codec(run_dir: Path, *, causal: bool = True, quantize: bool = True) -> None:
    """The folder codec/ of a run with text/: an untrained one, whose branches and codebooks are not 0."""
    torch.manual_seed(0)
    network = CodecNetworkSettings(
        hidden_size=WIDTH, latent_dim=WIDTH, num_attention_heads=2, causal=causal, kernel_size=4
    )
    vocabulary = TextRows.open(run_dir).vocabulary_size
    codec = shaken(RQVAE(network, CodecQuantizerSettings(SIZES, quantize=quantize), vocabulary))
    with Stage(run_dir, "codec", {"causal": causal}, (run_dir / "text",)).building(overwrite=True) as folder:
        codec.save(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with text/ alone."""
    folder = tmp_path_factory.mktemp("text")
    rows = "".join(json.dumps({"text": title}) + "\n" for title in small_dataset().titles * 3)
    (folder / "corpus.jsonl").write_text(rows)
    flags = ["--vocabulary", "300", "--row_length", "16", "--valid_share", "0.2", "--test_share", "0.2"]
    main(["codec", "text", "--documents", str(folder / "corpus.jsonl"), "--run_dir", str(folder / "run"), *flags])
    return folder / "run"


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "centred"])
def codec_run(request: pytest.FixtureRequest, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("codec")
    shutil.copytree(text / "text", run_dir / "text")
    make_codec(run_dir, causal=request.param)
    return run_dir


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 60 items whose texts are of many lengths; one has none, one is longer than the codec's rows."""
    run_dir, dataset = make_run_dir(tmp_path / "run"), small_dataset()
    texts: list[str | None] = [f"{title}. " + "words: tea, lamp. " * (i % 5) for i, title in enumerate(dataset.titles)]
    texts[7], texts[20] = None, "The red tea. " * 40
    items = dataset.items.with_columns(text=pl.Series(texts))
    with Stage(run_dir, "data", {"dataset": "rings"}).building(overwrite=True) as folder:
        Dataset(items, dataset.interactions, dataset.info, dataset.left_out).save(folder)
    shutil.rmtree(run_dir / "sid")
    return run_dir


def made(run: Path, codec_run: Path, to: Path) -> Path:
    main(["codec", "items", "--run_dir", str(run), "--codec", str(codec_run), "--to", str(to)])
    return to


def test_every_item_is_encoded_and_decoded_as_it_is_alone(
    run: Path, codec_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_latents, "TOKENS_AT_ONCE", 200)  # several batches, each with padding
    to, codec, items = made(run, codec_run, tmp_path / "items"), TextCodec.open(codec_run), Dataset.load(run).items
    mean, first, codes = (np.load(to / f"{name}.npy") for name in ("mean", "first", "codes"))
    assert mean.dtype == first.dtype == np.float32
    assert codes.dtype == np.int64
    assert mean.shape == first.shape == (60, WIDTH)
    assert codes.shape == (60, len(SIZES))
    meanings = pl.read_csv(to / "meanings.csv", glob=False)
    assert meanings.columns == ["item_id", "title", "decoded", "title_share"]
    assert meanings["item_id"].to_list() == items["item_id"].to_list()
    assert meanings["title"].to_list() == items["title"].to_list()
    for place, words in enumerate(items["text"].to_list()):
        tokens = codec.tokens(words) if words else [codec.stop]
        ids, lengths = torch.tensor([tokens]), torch.tensor([len(tokens)])
        with torch.no_grad():
            alone = codec.codec.encoder(ids, lengths)[0].numpy()
        assert len(alone) == -(-len(tokens) // 4)
        assert np.allclose(mean[place], alone.mean(0), atol=1e-5), place
        assert np.allclose(first[place], alone[0], atol=1e-5), place
        expected = codec.encode(words) if words else codec.codec.encode(ids, lengths)[0]
        assert np.array_equal(codes[place], expected[0]), place
        assert (meanings["decoded"][place] or "") == codec.decode(expected), place


def test_the_summary_names_the_commands_that_read_the_files(
    run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec_run = tmp_path / "codec"
    shutil.copytree(text / "text", codec_run / "text")
    make_codec(codec_run)
    to = made(run, codec_run, tmp_path / "items")
    told = capsys.readouterr().out
    commands = [shlex.split(words) for words in re.findall(r"; sidrec (tokenize .*)", told)]
    assert [command[command.index("--sources") + 1] for command in commands] == [
        str(to / name) for name in ("mean.npy", "first.npy", "first.npy")
    ]
    for command in commands[::2]:
        main([*command, "--overwrite", "true"])
    given = np.load(run / "sid" / "codes_raw.npy")
    assert np.array_equal(given, np.load(to / "codes.npy"))
    meanings = pl.read_csv(to / "meanings.csv", glob=False)
    decoded, tokenizer = meanings["decoded"].fill_null("").to_list(), TextRows.open(codec_run).tokenizer
    others = item_latents.shares_back(tokenizer, meanings["title"].to_list(), decoded[1:] + decoded[:1])
    back, chance = f"{meanings['title_share'].mean():.1%}", f"{item_latents.mean_share(others):.1%}"
    assert (
        f"{back} of a title's word pieces come back (mean; {chance} stand in the text of the next item, by chance)"
        in told
    )
    made(run, codec_run, to)
    assert "add --overwrite true" in capsys.readouterr().out


def test_a_title_comes_back_by_its_pieces(text: Path) -> None:
    tokenizer = TextRows.open(text).tokenizer
    titles = ["The red tea", "The red tea", "The red red", "", "The red tea"]
    texts = ["The red tea and more", "tea The red", "red", "anything", ""]
    whole, turned, twice, empty, nothing = item_latents.shares_back(tokenizer, titles, texts)
    pieces = {words: tokenizer(f" {words}", add_special_tokens=False)["input_ids"] for words in ("The red red", "red")}
    assert whole == turned == 1
    assert twice == len(pieces["red"]) / len(pieces["The red red"])
    assert empty is None
    assert nothing is not None
    assert nothing < 0.5


@pytest.mark.parametrize("lengths", [[1], [3, 1, 2, 9, 9, 1], [100, 1, 100]])
def test_batches_hold_every_row_once_and_no_more_tokens_than_allowed(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_latents, "TOKENS_AT_ONCE", 10)
    parts = [part.tolist() for part in item_latents.batches(lengths)]
    assert sorted(place for part in parts for place in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[place] for place in part) <= 10


def test_a_codec_without_a_quantizer_is_refused(run: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(text / "text", tmp_path / "plain" / "text")
    make_codec(tmp_path / "plain", quantize=False)
    with pytest.raises(InputError, match="has no codes"):
        made(run, tmp_path / "plain", tmp_path / "items")
    assert not (tmp_path / "items").exists()


def test_a_codec_that_is_not_trained_and_a_run_without_data_are_refused(run: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"codec/train_vae\.py"):
        made(run, text, tmp_path / "items")
    with pytest.raises(InputError, match="sidrec codec text"):
        made(run, tmp_path / "nothing", tmp_path / "items")
    with pytest.raises(InputError, match="sidrec prepare"):
        made(tmp_path / "nothing", text, tmp_path / "items")


def test_a_stages_folder_and_a_file_are_refused(run: Path, text: Path, tmp_path: Path) -> None:
    for to in (run / "data", run / "data" / "inner"):
        with pytest.raises(InputError, match="which a stage writes"):
            made(run, text, to)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        made(run, text, tmp_path / "file")


def test_more_levels_than_letters_are_said(tmp_path: Path) -> None:
    config = item_latents.ItemsConfig(tmp_path)
    latents = item_latents.ItemLatents(np.ones((1, 4)), np.ones((1, 4)), [np.zeros((1, 9), dtype=np.int64)])
    lines = item_latents.summary(config, latents, [None], [None], [2] * 9)
    assert "9 levels, and a semantic ID has at most 8" in lines[2]
    assert lines[-1].endswith("no item has a title")

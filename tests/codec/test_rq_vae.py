"""The codec: an untrained one gives text back, latents of a text's start stay, padding changes nothing, codes are the nearest ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from codec_cases import VOCABULARY, small_codec, token_rows

from sidrec.codec.reconstruction import reconstruct
from sidrec.codec.rq_vae import RQVAE
from sidrec.codec.settings import CodecNetworkSettings, CodecQuantizerSettings
from sidrec.codec.training import batch_of
from sidrec.pipeline.errors import InputError


@pytest.mark.parametrize("compression", [2, 4, 8])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 16])
def test_lengths(compression: int, length: int) -> None:
    codec = small_codec(compression)
    ids, lengths = batch_of(token_rows(2, length), torch.device("cpu"))
    n_latents = -(-length // compression)
    assert codec.encoder(ids, lengths).shape == (2, n_latents, 16)
    codes = codec.encode(ids, lengths)
    assert codes.shape == (2, n_latents, 2)
    assert codec.decode(codes).shape == (2, n_latents * compression)
    assert codec(ids, lengths).logits.shape == (2, n_latents * compression, VOCABULARY)


@pytest.mark.parametrize("compression", [2, 4])
def test_an_untrained_codec_without_a_quantizer_gives_text_back(compression: int) -> None:
    """A sum of a few orthogonal images of random vectors can be taken apart: the start that training improves."""
    torch.manual_seed(0)
    network = CodecNetworkSettings(compression=compression, hidden_size=128, latent_dim=128)
    codec = RQVAE(network, CodecQuantizerSettings([4], quantize=False), 1000).eval()
    rows = np.random.default_rng(0).integers(1, 1000, (8, 32))
    assert reconstruct(codec, rows).accuracy > 0.95


@pytest.mark.parametrize("kernel_size", [2, 4])
def test_latents_of_a_prefix_stay_when_text_is_appended(kernel_size: int) -> None:
    codec = small_codec(kernel_size=kernel_size)
    ids, lengths = batch_of(token_rows(2, 16), torch.device("cpu"))
    whole = codec.encoder(ids, lengths)
    for n in (4, 8, 12):
        start = codec.encoder(ids[:, :n], torch.full((2,), n))
        assert torch.allclose(start, whole[:, : n // 4], atol=1e-5)
    changed = ids.clone()
    changed[:, 8:] = changed[:, 8:] % (VOCABULARY - 1) + 1
    other = codec.encoder(changed, lengths)
    assert torch.equal(other[:, :2], whole[:, :2])
    assert not torch.allclose(other[:, 2], whole[:, 2])


def test_what_is_not_causal_reads_the_whole_text() -> None:
    codec = small_codec(causal=False)
    ids, lengths = batch_of(token_rows(1, 16), torch.device("cpu"))
    changed = ids.clone()
    changed[:, 15] = changed[:, 15] % (VOCABULARY - 1) + 1
    assert not torch.allclose(codec.encoder(ids, lengths)[:, 0], codec.encoder(changed, lengths)[:, 0])


def test_the_decoder_of_a_causal_codec_writes_a_start_that_stays() -> None:
    codec, codes = small_codec(), torch.randint(0, 4, (1, 5, 2), generator=torch.Generator().manual_seed(0))
    vectors = codec.quantizer.vectors_of(codes)
    assert torch.allclose(codec.decoder(vectors)[:, :12], codec.decoder(vectors[:, :3]), atol=1e-5)


@pytest.mark.parametrize("kernel_size", [2, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal: bool, kernel_size: int) -> None:
    codec = small_codec(causal=causal, kernel_size=kernel_size)
    rows = token_rows(2, 13)
    rows[1, 6:] = 0
    ids, lengths = batch_of(rows, torch.device("cpu"))
    assert lengths.tolist() == [13, 6]
    together = codec(ids, lengths)
    for place, length in enumerate([13, 6]):
        alone = codec(ids[place : place + 1, :length], lengths[place : place + 1])
        n = alone.logits.shape[1]
        assert torch.allclose(alone.logits[0], together.logits[place, :n], atol=1e-4)
    assert together.exists.sum(1).tolist() == [13, 6]
    assert together.latent_exists.sum(1).tolist() == [4, 2]


def test_the_loss_is_the_mean_over_tokens_that_exist_and_a_quarter_of_the_commitment() -> None:
    codec, rows = small_codec(), token_rows(2, 8)
    rows[1, 5:] = 0
    ids, lengths = batch_of(rows, torch.device("cpu"))
    made = codec(ids, lengths)
    losses = [
        -made.logits[row, at].log_softmax(-1)[rows[row, at]] for row in range(2) for at in range(8) if rows[row, at]
    ]
    assert len(losses) == 13
    assert made.cross_entropy.item() == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert made.quantized is not None
    assert made.loss.item() == pytest.approx(
        made.cross_entropy.item() + 0.25 * made.quantized.commitment.item(), rel=1e-5
    )


@pytest.mark.parametrize("name", ["encoder.halvings.0.convolution.weight", "encoder.backbone.table.weight"])
def test_the_gradient_passes_the_quantizer(name: str) -> None:
    codec = small_codec()
    made = codec(*batch_of(token_rows(2, 8), torch.device("cpu")))
    made.cross_entropy.backward()
    gradient = dict(codec.named_parameters())[name].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_a_saved_codec_is_the_same(tmp_path: Path) -> None:
    codec = small_codec()
    codec.save(tmp_path)
    loaded = RQVAE.load(tmp_path)
    ids, lengths = batch_of(token_rows(2, 9), torch.device("cpu"))
    assert torch.equal(loaded(ids, lengths).logits, codec(ids, lengths).logits)
    assert loaded.encoder.backbone.table is loaded.decoder.backbone.table


def test_a_damaged_codec_is_refused(tmp_path: Path) -> None:
    small_codec().save(tmp_path)
    weights = tmp_path / "codec.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="holds no whole codec"):
        RQVAE.load(tmp_path)


def test_reconstruction_counts_tokens_by_hand() -> None:
    codec, rows = small_codec(), token_rows(5, 12)
    rows[4, 7:] = 0
    measured = reconstruct(codec, rows)
    ids, lengths = batch_of(rows, torch.device("cpu"))
    codes = codec.encode(ids, lengths)
    tokens = codec.decode(codes).numpy()
    assert measured.n_tokens == 55
    assert measured.accuracy == pytest.approx(((tokens == rows) & (rows != 0)).sum() / 55)
    existing = np.concatenate([codes[row, : -(-int(lengths[row]) // 4)].numpy() for row in range(5)])
    assert measured.dead == [8 - len(set(existing[:, 0])), 4 - len(set(existing[:, 1]))]

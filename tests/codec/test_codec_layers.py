"""Halvings, doublings and attention: lengths by the document's formula, what reads what, and that an untrained pair undoes itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sidrec.codec.layers import (
    Doubling,
    Halving,
    SwiGLUTransformerLayer,
    compressed_length,
    convolved_length,
)
from sidrec.decoding.rq_transformer.blocks import KeyValues, RoPEAttention


@given(st.integers(1, 60), st.integers(0, 5), st.integers(0, 5), st.integers(1, 8), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_documents_formula_is_what_a_convolution_does(
    length: int, left: int, right: int, kernel: int, stride: int
) -> None:
    expected = convolved_length(length, left + right, kernel, stride)
    if expected == 0:
        assert length + left + right < kernel
        return
    padded = functional.pad(torch.zeros(1, 1, length), (left, right))
    assert functional.conv1d(padded, torch.zeros(1, 1, kernel), stride=stride).shape[2] == expected


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", [2, 4, 6])
def test_a_halving_has_the_formulas_length_and_a_doubling_gives_it_back(kernel: int, causal: bool) -> None:
    halving, doubling = Halving(8, kernel, causal=causal), Doubling(8, kernel, causal=causal)
    assert halving.left + halving.right == kernel - 2
    for length in range(2, 21, 2):
        half = halving(torch.randn(2, length, 8))
        assert half.shape == (2, convolved_length(length, kernel - 2, kernel), 8)
        assert doubling(half).shape == (2, length, 8)


@given(st.integers(1, 500), st.sampled_from([2, 4, 8]))
@settings(deadline=None)
def test_every_token_has_a_latent_and_every_latent_a_token(length: int, compression: int) -> None:
    n = compressed_length(length, compression)
    assert (n - 1) * compression < length <= n * compression


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", [2, 4])
def test_an_untrained_doubling_is_the_transpose_of_a_halving(kernel: int, causal: bool) -> None:
    """What comes back of two positions is each of them and the other one's image, by two orthogonal maps."""
    torch.manual_seed(0)
    halving, doubling = Halving(8, kernel, causal=causal), Doubling(8, kernel, causal=causal)
    doubling.undo(halving)
    first, second = (halving.convolution.weight[:, :, halving.left + place] for place in range(2))
    assert torch.allclose(first @ first.T, torch.eye(8), atol=1e-5)
    hidden = torch.randn(1, 6, 8)
    back = doubling(halving(hidden)).view(3, 2, 8)
    even, odd = hidden.view(3, 2, 8).unbind(1)
    assert torch.allclose(back[:, 0], even + odd @ second.T @ first, atol=1e-5)
    assert torch.allclose(back[:, 1], odd + even @ first.T @ second, atol=1e-5)


@pytest.mark.parametrize("kernel", [2, 4])
def test_a_causal_halving_reads_nothing_that_comes_later(kernel: int) -> None:
    torch.manual_seed(0)
    halving = Halving(8, kernel, causal=True)
    torch.nn.init.normal_(halving.convolution.weight)
    hidden = torch.randn(1, 10, 8)
    changed = hidden.clone()
    changed[:, 6:] += 1
    before, after = halving(hidden), halving(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


@pytest.mark.parametrize("causal", [True, False])
def test_a_doubling_with_a_long_kernel_is_causal_or_not(causal: bool) -> None:
    torch.manual_seed(0)
    doubling = Doubling(8, 4, causal=causal)
    torch.nn.init.normal_(doubling.convolution.weight)
    hidden = torch.randn(1, 6, 8)
    changed = hidden.clone()
    changed[:, 4:] += 1
    before, after = doubling(hidden), doubling(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (
        torch.equal(before[:, 7], after[:, 7]) == causal
    )  # the last position before the change reads the next latent's
    assert not torch.allclose(before[:, 8], after[:, 8])


def test_a_layer_starts_as_a_copy() -> None:
    hidden = torch.randn(2, 5, 8)
    assert torch.equal(SwiGLUTransformerLayer(8, 2, 0.0, causal=True)(hidden), hidden)


@pytest.mark.parametrize("pieces", [[5], [1, 1, 1, 1, 1], [3, 2], [2, 1, 2]])
def test_attention_with_a_cache_is_attention_without(pieces: list[int]) -> None:
    torch.manual_seed(0)
    attention, hidden, cache = RoPEAttention(8, 2), torch.randn(3, 5, 8), KeyValues()
    parts = [attention(piece, cache=cache) for piece in hidden.split(pieces, dim=1)]
    assert torch.allclose(torch.cat(parts, 1), attention(hidden), atol=1e-5)
    assert cache.length == 5


def test_attention_that_is_not_causal_reads_what_exists_and_no_more() -> None:
    torch.manual_seed(0)
    attention, hidden = RoPEAttention(8, 2, causal=False), torch.randn(1, 5, 8)
    exists = torch.tensor([[True, True, True, False, False]])
    assert torch.allclose(attention(hidden, exists)[:, :3], attention(hidden[:, :3]), atol=1e-5)
    changed = hidden.clone()
    changed[:, 2] += 1
    assert not torch.allclose(attention(changed, exists)[:, 0], attention(hidden, exists)[:, 0])

"""Finite scalar quantization: against the paper's formulas, its codebooks against rounding, and the model that learns to use it."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.autoencoders.finite_scalar import bound, codes_of, grid_codebooks, nearest_point, points
from sidrec.tokenizer.autoencoders.grid_settings import SIZES
from sidrec.tokenizer.config import parse_arguments
from sidrec.tokenizer.quantizer import Quantizer
from sidrec.tokenizer.quantizers.fsq import Fsq
from sidrec.tokenizer.quantizers.rqkmeans_fsq import RqkmeansFsq, residual_grid, step_width

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=4)


def unit_vectors(n: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """Rows of length 1 that lie near 20 directions."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((20, dimensions))[rng.integers(0, 20, n)] + 0.5 * rng.standard_normal((n, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@given(st.lists(st.integers(3, 9), min_size=1, max_size=4), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_a_code_is_the_papers_index(levels: list[int], seed: int) -> None:
    """index = sum_i (ẑ_i + floor(L_i / 2)) prod_{j<i} L_j, with ẑ = round(tanh(z + atanh(o/h)) h - o); arXiv 2309.15505, appendix A.1."""
    z = np.random.default_rng(seed).normal(0, 2, (50, len(levels)))
    wanted = np.zeros(50, dtype=np.int64)
    step = 1
    for i, n in enumerate(levels):
        half = (n - 1) * (1 + 1e-3) / 2
        offset = 0.5 if n % 2 == 0 else 0.0
        rounded = np.round(np.tanh(z[:, i] + math.atanh(offset / half)) * half - offset).astype(int)
        assert rounded.min() >= -(n // 2)
        assert rounded.max() <= (n - 1) // 2
        wanted += (rounded + n // 2) * step
        step *= n
    codes = codes_of(nearest_point(bound(torch.from_numpy(z), levels), levels), levels)
    np.testing.assert_array_equal(codes.numpy(), wanted)


@pytest.mark.parametrize("n", range(2, 10))
def test_latents_of_every_sign_reach_every_value_and_zero_is_in_the_middle(n: int) -> None:
    """Two levels are the sign of z; the paper's shift would make them a constant."""
    z = torch.linspace(-4, 4, 2001, dtype=torch.float64)[:, None]
    rounded = torch.round(bound(z, [n]) * (n // 2))[:, 0]
    values, counts = rounded.unique(return_counts=True)
    assert values.tolist() == list(range(-(n // 2), (n + 1) // 2))
    assert (rounded.diff() >= 0).all()
    assert counts.min() > 2001 / n / 10
    if n == 2:
        clear = z[:, 0].abs() > 1e-9
        assert torch.equal(rounded[clear], (torch.sign(z[clear, 0]) - 1) / 2)
    gradient = torch.autograd.functional.jacobian(lambda at: bound(at[:, None], [n]).sum(), torch.zeros(1))
    assert float(gradient) > 0.4 / (n // 2)


def test_two_levels_use_all_codes_of_standard_normal_latents() -> None:
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((4000, 8)))
    counts = np.bincount(codes_of(nearest_point(bound(z, [2] * 8), [2] * 8), [2] * 8), minlength=256)
    assert counts.min() > 0
    assert np.exp(-(counts / 4000 * np.log(counts / 4000)).sum()) > 240


@pytest.mark.parametrize(("levels", "size"), [([8, 6, 5], 240), ([7, 5, 5, 5, 5], 4375), ([5, 3], 15), ([2], 2)])
def test_points_are_all_different_and_in_the_order_of_their_codes(levels: list[int], size: int) -> None:
    grid = points(levels)
    assert grid.shape == (size, len(levels))
    assert len(np.unique(grid, axis=0)) == size
    np.testing.assert_array_equal(codes_of(torch.from_numpy(grid), levels).numpy(), np.arange(size))
    assert (grid.min(axis=0) == -1).all()
    for i, n in enumerate(levels):  # an even number of levels has one more below zero than above
        np.testing.assert_allclose(np.unique(grid[:, i]), np.arange(-(n // 2), (n + 1) // 2) / (n // 2))


@given(LEVELS, st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_a_symmetric_grid_is_that_of_preserve_symmetry(levels: list[int], seed: int) -> None:
    """vector-quantize-pytorch: with q = floor((n - 1) (tanh z + 1) / 2 + .5), the value is 2 q / (n - 1) - 1 and the digit q."""
    z = np.random.default_rng(seed).normal(0, 2, (50, len(levels)))
    sizes = np.array(levels)
    at = (sizes - 1) * (np.tanh(z) + 1) / 2 + 0.5
    clear = (np.abs(at - np.rint(at)) > 1e-2).all(axis=1)  # no border: the margin eps moves them a little
    digits = np.floor(at)
    bounded = bound(torch.from_numpy(z), levels, symmetric=True)
    point = nearest_point(bounded, levels, symmetric=True)
    np.testing.assert_allclose(point.numpy()[clear], (2 * digits / (sizes - 1) - 1)[clear], atol=1e-12)
    codes = codes_of(point, levels, symmetric=True).numpy()
    np.testing.assert_array_equal(codes[clear], (digits @ np.concatenate([[1], np.cumprod(sizes)[:-1]]))[clear])
    np.testing.assert_allclose(points(levels, symmetric=True)[codes], point.numpy(), atol=1e-6)
    np.testing.assert_array_equal(
        grid_codebooks(levels, 1, "groups", symmetric=True).encode(bounded.float().numpy())[clear, 0], codes[clear]
    )
    if all(n % 2 for n in levels):
        np.testing.assert_array_equal(points(levels, symmetric=True), points(levels))


def test_eight_levels_on_either_grid() -> None:
    """The design document lists the symmetric values; the paper's and the default are the others."""
    document = [-1, -0.714, -0.428, -0.142, 0.142, 0.428, 0.714, 1]
    np.testing.assert_allclose(points([8], symmetric=True)[:, 0], document, atol=1e-3)
    np.testing.assert_allclose(points([8])[:, 0], np.arange(-4, 4) / 4)


@given(LEVELS, st.integers(1, 3), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_the_nearest_code_of_groups_is_rounding(levels: list[int], tokens: int, seed: int) -> None:
    latents = np.random.default_rng(seed).uniform(-1.3, 1.3, (40, tokens * len(levels))).astype(np.float32)
    codes = grid_codebooks(levels, tokens, "groups").encode(latents)
    half = np.array(levels) // 2
    for token in range(tokens):
        part = latents[:, token * len(levels) : (token + 1) * len(levels)]
        rounded = np.clip(np.round(part * half), -half, (np.array(levels) - 1) // 2)
        clear = (np.abs(np.abs(part * half - np.floor(part * half)) - 0.5) > 1e-3).all(axis=1)  # not between two points
        np.testing.assert_allclose(points(levels)[codes[clear, token]], (rounded / half)[clear], atol=1e-6)


@given(st.lists(st.integers(3, 9), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_the_nearest_code_of_residual_tokens_is_rounding_on_a_finer_grid(
    levels: list[int], tokens: int, seed: int
) -> None:
    latents = np.random.default_rng(seed).uniform(-1, 1, (40, len(levels))).astype(np.float32)
    books = grid_codebooks(levels, tokens, "residual")
    codes = books.encode(latents)
    half, left = np.array(levels) // 2, latents.astype(np.float64)
    clear = np.ones(40, dtype=bool)
    for token in range(tokens):
        unit = (np.array(levels) - 1.0) ** -token / half  # between neighbouring values of this token
        clear &= (np.abs(np.abs(left / unit - np.floor(left / unit)) - 0.5) > 1e-2).all(axis=1)
        rounded = np.clip(np.round(left / unit), -half, (np.array(levels) - 1) // 2) * unit
        np.testing.assert_allclose(books.books[token][codes[clear, token]], rounded[clear], atol=1e-6)
        left = left - books.books[token][codes[:, token]]
    if tokens > 1 and all(n % 2 for n in levels):  # with odd levels the finer grid covers what is left
        assert np.abs(left).max() <= (0.5 * unit).max() + 1e-6


@pytest.mark.parametrize("grid", ["asymmetric", "symmetric"])
@pytest.mark.parametrize(("form", "levels"), [("groups", [4, 3]), ("groups", [2, 2, 3]), ("residual", [5, 4, 3])])
def test_the_model_rounds_as_its_quantizer_does(form: str, levels: list[int], grid: str, tmp_path: Path) -> None:
    vectors = unit_vectors(300, 12)
    chosen = Fsq(fsq_levels=levels, fsq_form=form, fsq_grid=grid, hidden_sizes=[16])
    model = chosen.build(vectors, seed=0)
    losses, rounded = model(torch.from_numpy(vectors))
    quantizer = model.quantizer()
    codes = quantizer.encode(vectors)
    assert (codes == rounded.codes.numpy()).mean() > 0.999
    same = (codes == rounded.codes.numpy()).all(axis=1)
    np.testing.assert_allclose(quantizer.codebooks.reconstruct(codes)[same], rounded.points.numpy()[same], atol=1e-6)
    quantizer.save(tmp_path / "q")
    assert np.array_equal(Quantizer.load(tmp_path / "q").encode(vectors), codes)
    assert max(len(np.unique(level)) for level in codes.T) > 2
    error = quantizer.mean_squared_errors(vectors, codes)[-1] / 12
    assert losses["loss"].item() == pytest.approx(error, rel=1e-3)


def test_gradients_pass_straight_through_the_rounding() -> None:
    """The encoder's gradient is that of the loss at the rounded points, taken as if they were the bounded latents themselves."""
    vectors = torch.from_numpy(unit_vectors(30, 6))
    model = Fsq(fsq_levels=[5, 4], fsq_tokens=2, hidden_sizes=[8]).build(vectors.numpy(), seed=0)
    model(vectors)[0]["loss"].backward()
    straight_through = [parameter.grad.clone() for parameter in model.encoder.parameters()]
    bounded = bound(model.encoder(vectors), [5, 4, 5, 4])
    point = nearest_point(bounded.detach(), [5, 4, 5, 4]).requires_grad_()
    ((model.decoder(point) - vectors) ** 2).mean().backward()
    wanted = torch.autograd.grad(bounded, list(model.encoder.parameters()), point.grad)
    for gradient, other in zip(straight_through, wanted, strict=True):
        torch.testing.assert_close(gradient, other)
        assert gradient.abs().max() > 0


def test_unit_vectors_do_not_fall_into_one_cell() -> None:
    """Before the first step most codes are in use, although a unit vector's numbers are small; also for vectors 1000 times as long."""
    for factor in (1.0, 1000.0):
        vectors = factor * unit_vectors(2000, 384)
        model = Fsq(fsq_levels=[4, 4]).build(vectors, seed=0)
        codes = model.quantizer().encode(vectors)
        assert min(len(np.unique(level)) for level in codes.T) >= 8


def test_training_lowers_the_error_and_saves_what_codes_alike(tmp_path) -> None:
    vectors = unit_vectors(600, 16)
    chosen = Fsq(
        fsq_levels=[5, 5],
        hidden_sizes=[32],
        training_steps=150,
        evaluate_every=50,
        batch_size=128,
        learning_rate=0.01,
    )
    before = chosen.build(vectors, seed=0).quantizer()
    quantizer = chosen.fit(vectors, [25, 25, 25], seed=0, folder=tmp_path)
    first, last = (q.mean_squared_errors(vectors, q.encode(vectors))[-1] for q in (before, quantizer))
    assert last < 0.5 * min(first, vectors.var(axis=0).sum())
    assert (tmp_path / "training.json").exists()
    assert quantizer.codebooks.sizes == [25, 25, 25]
    quantizer.save(tmp_path / "q.safetensors")
    again = Quantizer.load(tmp_path / "q.safetensors")
    assert again.fsq_levels == (5, 5) * 3
    np.testing.assert_array_equal(again.encode(vectors), quantizer.encode(vectors))
    resumed = chosen.fit(vectors, [25, 25, 25], seed=0, folder=tmp_path)  # finished: nothing left to train
    np.testing.assert_array_equal(resumed.encode(vectors), quantizer.encode(vectors))
    assert chosen.fit(vectors, [25, 25, 25], seed=0).encode(vectors).tobytes() == quantizer.encode(vectors).tobytes()


DOCUMENT = {16: 15, 256: 240, 512: 512, 1024: 1000, 2048: 1920, 4096: 4375, 16384: 15360, 65536: 64000}


def test_a_size_takes_the_levels_of_the_table_and_the_product_is_the_number_of_codes() -> None:
    """The real numbers of codes are those of the design document's table; 64 is the paper's, too."""
    assert set(SIZES) == {*DOCUMENT, 64}
    for size, n_codes in DOCUMENT.items():
        for kind in (Fsq(fsq_size=size, fsq_tokens=2), RqkmeansFsq(fsq_size=size)):
            assert kind.n_codes == n_codes
            assert math.prod(kind.fsq_levels) == n_codes
        assert Fsq(fsq_size=size, fsq_tokens=2).choose_level_sizes([], (100, 8), "none") == [n_codes] * 2


def test_a_size_is_another_way_to_write_levels(tmp_path: Path) -> None:
    """So it wins over what a file or an earlier run says, and what was made with either is not made again."""
    assert Fsq(fsq_size=512) == Fsq(fsq_levels=[8, 8, 8])
    assert Fsq(fsq_size=16, fsq_levels=[4, 4]).fsq_levels == [5, 3]
    (tmp_path / "c.yaml").write_text("quantizer: fsq\nfsq_levels: [4, 4]\n")
    flags = ["--config", str(tmp_path / "c.yaml"), "--fsq_size", "1024"]
    assert parse_arguments(flags, stage="sid")[1].fsq_levels == [8, 5, 5, 5]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fsq_size": 1000}, "fsq_size is 1000; it must be one of 16, 64, 256, 512, 1024"),
        ({"fsq_levels": [8, 1]}, r"fsq_levels is \[8, 1\]"),
        ({"fsq_levels": []}, r"fsq_levels is \[\]"),
        ({"fsq_levels": [9] * 6}, "give 531,441 codes, more than 65,536"),
        ({"fsq_form": "both"}, "fsq_form is 'both'"),
        ({"fsq_grid": "even"}, "fsq_grid is 'even'; it must be one of `asymmetric`, `symmetric`"),
        ({"fsq_form": "residual", "fsq_levels": [2, 3]}, "gets no finer"),
        ({"fsq_tokens": 0}, "fsq_tokens is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Fsq(**changed)


@pytest.mark.parametrize("kind", [Fsq, RqkmeansFsq])
def test_a_grid_has_only_the_settings_that_it_uses(kind: type) -> None:
    names = {setting.name for setting in fields(kind)}
    assert not names & {"e_dim", "commitment_weight", "codebook_init", "codebook_update", "shared_codebook"}
    assert ({"fsq_tokens", "fsq_form"} <= names) == (kind is Fsq)
    assert ({"clusters", "slack"} <= names) == (kind is RqkmeansFsq)


# k-means with a grid as its last level


def test_the_nearest_grid_vector_is_rounding_along_principal_directions() -> None:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    scales = np.array([4.0, 2.0, 1.0, 0.3, 0.2, 0.1])
    residuals = (rng.standard_normal((5000, 6)) * scales @ basis.T + 0.5).astype(np.float32)
    levels = [5, 4]
    grid = residual_grid(residuals, levels)
    assert grid.shape == (20, 6)
    centred = residuals - residuals.mean(axis=0)
    values = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T  # along the two leading directions
    chosen = ((residuals[:, None] - grid) ** 2).sum(axis=2).argmin(axis=1)
    on_grid = (grid - residuals.mean(axis=0)) @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    for i, n in enumerate(levels):
        steps = np.unique(on_grid[:, i].round(4))
        assert len(steps) == n
        np.testing.assert_allclose(steps, -steps[::-1], atol=1e-3)  # symmetric, and evenly spaced
        np.testing.assert_allclose(np.diff(steps), steps[1] - steps[0], atol=1e-3)
        nearest = np.abs(values[:, i : i + 1] - steps).min(axis=1)
        np.testing.assert_allclose(np.abs(values[:, i] - on_grid[chosen, i]), nearest, atol=2e-3)
    np.testing.assert_allclose(grid.mean(axis=0), residuals.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_the_step_width_has_the_least_error(n: int) -> None:
    values = np.random.default_rng(n).standard_t(4, 4000)

    def error(step: float) -> float:
        grid = step * (np.arange(n) - (n - 1) / 2)
        return float(np.square(values[:, None] - grid).min(axis=1).mean())

    best = min(error(step) for step in np.linspace(0.01, 6, 600))
    assert error(step_width(values, n)) <= best * 1.001
    assert step_width(np.zeros(5), n) == 0


def test_the_grid_follows_k_means_of_the_first_levels() -> None:
    vectors = unit_vectors(2000, 16)
    books = RqkmeansFsq(fsq_levels=[5, 4, 3]).fit(vectors, [8, 8, 60], 0).codebooks
    assert books.sizes == [8, 8, 60]
    errors = Quantizer(books).mean_squared_errors(vectors, books.encode(vectors))
    assert errors[0] > errors[1] > errors[2]
    again = RqkmeansFsq(fsq_levels=[5, 4, 3]).fit(vectors, [8, 8, 60], 0).codebooks
    assert all(one.tobytes() == other.tobytes() for one, other in itertools.zip_longest(books.books, again.books))


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        (RqkmeansFsq(), [240], "needs two levels"),
        (RqkmeansFsq(fsq_levels=[2] * 7), [8, 128], "names 7 dimensions, but the item vectors have 6"),
    ],
)
def test_a_lone_grid_and_one_with_too_many_dimensions_are_refused(
    kind: RqkmeansFsq, sizes: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        kind.check(np.zeros((20, 6), dtype=np.float32), sizes)

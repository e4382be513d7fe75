"""The trained quantizers' model: every loss and gradient against the written formula, moving averages against hand computation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sidrec.tokenizer.autoencoders.autoencoder import Codebook, ResidualAutoencoder
from sidrec.tokenizer.autoencoders.ema_codebook import SMOOTHING, EmaCodebook
from sidrec.tokenizer.autoencoders.mlp import Mlp
from sidrec.tokenizer.autoencoders.rotation import rotate
from sidrec.tokenizer.autoencoders.settings import AutoencoderSettings
from sidrec.tokenizer.autoencoders.sinkhorn import balanced_codes, log_plan
from sidrec.tokenizer.autoencoders.soft_usage import unevenness

N, D, E, K, L = 24, 6, 4, 5, 3


def model_of(ema: bool = False, skip: bool = False, shared: bool = False, **settings: Any) -> ResidualAutoencoder:
    """A small model with codebooks of falling scale, in float64 so that gradients can be compared tightly."""
    generator = torch.Generator().manual_seed(1)
    e = D if skip else E
    starts = [torch.randn(K, e, generator=generator, dtype=torch.float64) * 0.6**level for level in range(L)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        encoder, decoder = Mlp([(D, e)], [7], skip=skip), Mlp([(e, D)], [7], skip=skip)
    books: list[Codebook | EmaCodebook] = []
    for start in starts[:1] if shared else starts:
        books.append(EmaCodebook(start, 0.8, N) if ema else Codebook(start))
    model = ResidualAutoencoder(
        encoder,
        books * L if shared else books,
        decoder,
        AutoencoderSettings(codebook_update="ema" if ema else "gradient", **settings),
    )
    return model.double()


def batch(seed: int = 0) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(loss: Tensor, model: ResidualAutoencoder) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    by_weight = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(named.items(), by_weight, strict=True)
    }


def nearest(rows: Tensor, book: Tensor) -> Tensor:
    return (rows[:, None] - book[None]).square().sum(2).argmin(1)


def written_loss(
    model: ResidualAutoencoder, x: Tensor, beta: float, weight: float, l1: bool, first: bool
) -> dict[str, Tensor]:
    """The formula of the module's docstring, level by level, with `detach` for sg and nothing of the model's own methods."""
    z = model.encoder(x)
    r, zq, codebook, commitment = z, torch.zeros_like(z), 0.0, 0.0
    for book in model.codebooks:
        vectors = book.weight
        e = vectors[nearest(r, vectors)]
        codebook = codebook + (r.detach() - e).pow(2).sum() / r.numel() / L
        commitment = commitment + (r - e.detach()).pow(2).sum() / r.numel() / L
        zq = zq + e
        # as published, the straight-through vector is subtracted
        r = r - (r + (e - r).detach()) if first else r - e.detach()
    reconstructed = model.decoder(z + (zq - z).detach())
    error = (x - reconstructed).abs() if l1 else (x - reconstructed).pow(2)
    reconstruction = error.sum() / x.numel()
    total = reconstruction + weight * (codebook + beta * commitment)
    return {"loss": total, "reconstruction": reconstruction, "codebook": codebook, "commitment": commitment}


@pytest.mark.parametrize("reconstruction", ["mse", "l1"])
@pytest.mark.parametrize("levels", ["all", "first"])
@pytest.mark.parametrize("shared", [False, True])
def test_every_loss_and_its_gradient_are_those_of_the_formula(reconstruction: str, levels: str, shared: bool) -> None:
    model = model_of(
        shared=shared,
        reconstruction=reconstruction,
        commitment_levels=levels,
        commitment_weight=0.4,
        quantization_weight=1.7,
    )
    x = batch()
    losses, _ = model(x)
    wanted = written_loss(model, x, 0.4, 1.7, reconstruction == "l1", levels == "first")
    for name, value in wanted.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-10), name
        by_model, formula = gradients(losses[name], model), gradients(value, model)
        for weight in by_model:
            torch.testing.assert_close(
                by_model[weight], formula[weight], rtol=1e-8, atol=1e-12, msg=f"{name}: {weight}"
            )
    assert float(gradients(losses["loss"], model)["codebooks.0.weight"].abs().sum()) > 0


def test_the_sum_over_levels_and_its_gradient_are_those_of_the_formula() -> None:
    """As TIGER writes it: sum_l ||sg[r_l] - e_l||^2 + beta ||r_l - sg[e_l]||^2, beside one reconstruction error."""
    model = model_of(level_reduction="sum", commitment_weight=0.4, quantization_weight=0.7)
    x = batch()
    losses, _ = model(x)
    wanted = written_loss(model, x, 0.4, 0.7 * L, l1=False, first=False)
    assert losses["codebook"].item() == pytest.approx(L * wanted["codebook"].item(), rel=1e-10)
    assert losses["commitment"].item() == pytest.approx(L * wanted["commitment"].item(), rel=1e-10)
    assert losses["reconstruction"].item() == pytest.approx(wanted["reconstruction"].item(), rel=1e-10)
    by_model, formula = gradients(losses["loss"], model), gradients(wanted["loss"], model)
    for weight in by_model:
        torch.testing.assert_close(by_model[weight], formula[weight], rtol=1e-8, atol=1e-12, msg=weight)


def test_the_first_level_counts_coarse_weight_and_the_others_fine_weight() -> None:
    model, x = model_of(coarse_weight=3.0, fine_weight=0.25, commitment_weight=0.4), batch()
    losses, quantized = model(x)
    r, e = (torch.stack(level).double() for level in (quantized.residuals, quantized.chosen))  # [L, N, e]
    w = torch.tensor([3.0, 0.25, 0.25], dtype=torch.float64)
    for name, value in (
        ("codebook", (w * (e - r.detach()).square().mean((1, 2))).sum() / L),
        ("commitment", (w * (r - e.detach()).square().mean((1, 2))).sum() / L),
    ):
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-9)
        by_model, formula = gradients(losses[name], model), gradients(value, model)
        for weight in by_model:
            torch.testing.assert_close(by_model[weight], formula[weight], rtol=1e-7, atol=1e-12, msg=weight)
    wanted = losses["reconstruction"] + losses["codebook"] + 0.4 * losses["commitment"]
    assert losses["loss"].item() == pytest.approx(wanted.item(), rel=1e-9)
    plain = model_of(commitment_weight=0.4)(x)[0]
    assert losses["codebook"].item() != pytest.approx(plain["codebook"].item(), rel=0.01)


@pytest.mark.parametrize(
    ("assignment", "weights"),
    [("soft", "softmax"), ("soft", "sinkhorn"), *(("topk", w) for w in ("softmax", "sinkhorn", "uniform", "learnt"))],
)
def test_a_soft_level_is_coded_by_its_mixture_and_the_others_by_one_code(assignment: str, weights: str) -> None:
    """Level 1 alone mixes: r_2 = r_1 - Q C_1, and the loss and its gradient follow from r_l and e_l."""
    soft = {"assignment": assignment, "soft_weights": weights, "soft_levels": [1], "commitment_weight": 0.4}
    model, x = model_of(**soft), batch()
    losses, quantized = model(x, 0.3)
    z = model.encoder(x)
    books = [book.weight for book in model.codebooks]
    r, e, total = z, [], 0
    for level, book in enumerate(books):
        if level == 1:
            ranks = model.ranks[1] if weights == "learnt" else None
            mixture = model.soft.weights(r.detach(), book.detach(), 0.3, ranks)  # has tests of its own
            assert float((mixture.detach() > 1e-9).double().sum(1).mean()) > 2
            e.append(mixture @ book)
        else:
            e.append(book[nearest(r, book)])
        total = total + ((e[-1] - r.detach()) ** 2).mean() / L + 0.4 * ((e[-1].detach() - r) ** 2).mean() / L
        r = r - e[-1].detach()
    torch.testing.assert_close(quantized.zq, sum(e))
    wanted = ((model.decoder(z + (sum(e) - z).detach()) - x) ** 2).mean() + total
    assert losses["loss"].item() == pytest.approx(wanted.item(), rel=1e-9)
    by_model, formula = gradients(losses["loss"], model), gradients(wanted, model)
    for name in by_model:
        torch.testing.assert_close(by_model[name], formula[name], rtol=1e-7, atol=1e-10, msg=name)
    if weights == "learnt":
        assert float(by_model["ranks.1"].abs().max()) > 0
    hard = model_of()
    hard.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model.eval().quantize(z, 0.3).zq, hard.quantize(z).zq), "outside training codes are hard"


@pytest.mark.parametrize("levels", ["all", "first"])
def test_which_levels_commitment_reaches_the_latents(levels: str) -> None:
    """As published only level 0 trains the encoder; with all levels every one does."""
    model = model_of(commitment_levels=levels)
    z = torch.randn(N, E, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    quantized = model.quantize(z)
    norms = []
    for residual, chosen in zip(quantized.residuals, quantized.chosen, strict=True):
        loss = (residual - chosen.detach()).square().mean()
        gradient = torch.autograd.grad(loss, z, allow_unused=True, retain_graph=True)[0] if loss.requires_grad else None
        norms.append(0.0 if gradient is None else float(gradient.norm()))
        if norms[-1]:
            wanted = 2 * (residual - chosen).detach() / residual.numel()
            torch.testing.assert_close(gradient, wanted)
    assert norms[0] > 0.01
    assert all(norm > 0.01 for norm in norms) if levels == "all" else norms[1:] == [0.0, 0.0]


def test_the_gradient_passes_straight_through_the_sum() -> None:
    model = model_of()
    z = batch()[:, :E].clone().requires_grad_()
    quantized = model.quantize(z)
    passed = model.pass_through(z, quantized.zq)
    direction = torch.randn(N, E, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad((passed * direction).sum(), z)[0], direction)
    torch.testing.assert_close(passed, quantized.zq)


def test_codes_are_greedy_nearest_neighbours_and_sum_to_zq() -> None:
    model = model_of()
    z = batch(5)[:, :E]
    quantized = model.quantize(z)
    residual = z.clone()
    for level, book in enumerate(model.codebooks):
        codes = nearest(residual, book.weight)
        assert torch.equal(quantized.codes[:, level], codes)
        torch.testing.assert_close(quantized.residuals[level], residual)
        residual = residual - book.weight[codes]
    torch.testing.assert_close(z - quantized.zq, residual)


def test_rotation_is_the_scaled_rotation_of_the_paper() -> None:
    """The Jacobian of a row is ||zq|| / ||z|| · (I - 2 v v^T + 2 w u^T), a scaled rotation that takes z to zq."""
    z = batch(6)[:, :E].clone().requires_grad_()
    zq = batch(7)[:, :E]
    passed = rotate(z, zq)
    torch.testing.assert_close(passed, zq)
    for row in range(3):
        u, w = z[row].detach() / z[row].detach().norm(), zq[row] / zq[row].norm()
        v = (u + w) / (u + w).norm()
        rotation = torch.eye(E, dtype=torch.float64) - 2 * torch.outer(v, v) + 2 * torch.outer(w, u)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(E, dtype=torch.float64))
        matrix = zq[row].norm() / z[row].detach().norm() * rotation
        torch.testing.assert_close(matrix @ z[row].detach(), zq[row])
        jacobian = torch.stack([torch.autograd.grad(passed[row, i], z, retain_graph=True)[0][row] for i in range(E)])
        torch.testing.assert_close(jacobian, matrix)


def test_rotation_of_a_zero_row_has_finite_value_and_gradient() -> None:
    z = torch.zeros(2, E, dtype=torch.float64).requires_grad_()
    zq = torch.stack([torch.zeros(E, dtype=torch.float64), torch.ones(E, dtype=torch.float64)])
    passed = rotate(z, zq)
    torch.testing.assert_close(passed, zq)
    assert torch.autograd.grad(passed.sum(), z)[0].isfinite().all()


def test_the_rotation_is_used_where_it_is_asked_for() -> None:
    x = batch()
    straight, turned = model_of(), model_of(rotation_trick=True)
    first, second = straight(x)[0]["reconstruction"], turned(x)[0]["reconstruction"]
    assert first.item() == pytest.approx(second.item(), rel=1e-9)
    one, other = gradients(first, straight), gradients(second, turned)
    assert not torch.allclose(one["encoder.stacks.0.0.weight"], other["encoder.stacks.0.0.weight"])
    torch.testing.assert_close(one["decoder.stacks.0.0.weight"], other["decoder.stacks.0.0.weight"])


def test_sinkhorn_reaches_both_marginals_and_is_the_scaled_kernel() -> None:
    squared = torch.rand(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 7 + 3
    plan = log_plan(squared, 0.5, 300).exp()
    torch.testing.assert_close(plan.sum(0), torch.full((4,), 1 / 4, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.full((12,), 1 / 12, dtype=torch.float64), rtol=1e-6, atol=0)
    middle, half = (squared.max() + squared.min()) / 2, (squared.max() - squared.min()) / 2
    kernel = torch.exp(-(squared - middle) / (half + 1e-5) / 0.5)
    assert (
        torch.linalg.matrix_rank(torch.log(plan / kernel) - torch.log(plan / kernel)[:1]) == 1
    )  # row factor x column factor


def test_sinkhorn_uses_all_codes_where_the_nearest_uses_few() -> None:
    rows = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    book = torch.randn(16, 8, generator=torch.Generator().manual_seed(1)) * 0.2
    book[0] = 0
    plain = torch.bincount(nearest(rows, book), minlength=16)
    balanced = torch.bincount(balanced_codes(rows, book, 0.01, 100), minlength=16)
    assert plain.max() > 25
    assert balanced.min() >= 12
    assert balanced.max() <= 20


def test_sinkhorn_is_for_training_only() -> None:
    model = model_of(sinkhorn_epsilon=0.003)
    model.codebooks[0].weight.data[1:] += 50  # all rows are nearest to code 0
    x = batch()
    assert len(model.train()(x)[1].codes[:, 0].unique()) == K
    assert model.eval()(x)[1].codes[:, 0].unique().tolist() == [0]


def test_a_level_with_an_epsilon_of_its_own_is_balanced_and_the_others_are_not() -> None:
    x = batch()
    for epsilons in ([0.0, 0.003, 0.1], [0.01, 0.0, 0.0]):
        model = model_of(sinkhorn_epsilon=epsilons)
        residual = model.encoder(x)
        codes = model.train()(x)[1].codes
        for level, (epsilon, book) in enumerate(zip(epsilons, model.codebooks, strict=True)):
            wanted = balanced_codes(residual, book.weight, epsilon, 50) if epsilon else nearest(residual, book.weight)
            assert torch.equal(codes[:, level], wanted), (epsilons, level)
            residual = residual - book.weight[wanted]
    one, three = (model_of(sinkhorn_epsilon=epsilon).train()(x)[1].codes for epsilon in (0.01, [0.01] * 3))
    assert torch.equal(one, three)


def test_unevenness_is_the_entropy_gap_of_the_soft_usage() -> None:
    rows, book = batch(8)[:, :E], batch(9)[:K, :E]
    squared = (rows[:, None] - book[None]).square().sum(2)
    two = squared.sort(1).values
    temperature = float((two[:, 1] - two[:, 0]).mean())
    p = [0.0] * K
    for row in squared:
        weights = [math.exp(-float(d) / temperature) for d in row]
        for k in range(K):
            p[k] += weights[k] / sum(weights) / N
    wanted = math.log(K) + sum(share * math.log(share) for share in p)
    assert float(unevenness(rows, book)) == pytest.approx(wanted, rel=1e-9)
    assert wanted > 0.01


def test_unevenness_has_the_gradient_of_its_formula_and_scale_does_not_matter() -> None:
    rows, book = batch(8)[:, :E].clone().requires_grad_(), batch(9)[:K, :E].clone().requires_grad_()
    by_autograd = torch.autograd.grad(unevenness(rows, book), (rows, book))
    squared = (rows[:, None] - book[None]).square().sum(2)
    two = squared.detach().sort(1).values
    p = torch.softmax(-squared / (two[:, 1] - two[:, 0]).mean(), 1).mean(0)
    wanted = torch.autograd.grad(math.log(K) + (p * p.log()).sum(), (rows, book))
    for gradient, formula in zip(by_autograd, wanted, strict=True):
        torch.testing.assert_close(gradient, formula)
        assert float(gradient.abs().max()) > 1e-4
    assert unevenness(rows * 10, book * 10).item() == pytest.approx(unevenness(rows, book).item())
    far = torch.cat([book, book[:1] + 1e4])  # a share that underflows to 0
    assert torch.autograd.grad(unevenness(rows, far), rows)[0].isfinite().all()


def test_the_variance_form_is_its_formula_and_near_even_use_two_kths_of_the_entropy_form() -> None:
    rows, book = batch(8)[:, :E].clone().requires_grad_(), batch(9)[:K, :E].clone().requires_grad_()
    squared = (rows[:, None] - book[None]).square().sum(2)
    two = squared.detach().sort(1).values
    p = torch.softmax(-squared / (two[:, 1] - two[:, 0]).mean(), 1).mean(0)
    measured, wanted = unevenness(rows, book, "variance"), sum((share - 1 / K) ** 2 for share in p)
    assert measured.item() == pytest.approx(wanted.item(), rel=1e-9)
    for gradient, formula in zip(
        torch.autograd.grad(measured, (rows, book)), torch.autograd.grad(wanted, (rows, book)), strict=True
    ):
        torch.testing.assert_close(gradient, formula)
        assert float(gradient.abs().max()) > 1e-4
    crowd = torch.randn(4000, E, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    corners = 0.01 * torch.cat([torch.eye(E), -torch.eye(E)]).double()  # 2 e codes about the origin of a round cloud
    even, other = unevenness(crowd, corners), unevenness(crowd, corners, "variance")
    assert 0 < other.item() < 1e-3
    assert other.item() == pytest.approx(even.item() * 2 / (2 * E), rel=0.05)


@pytest.mark.parametrize("form", ["entropy", "variance"])
def test_diversity_is_weighted_in_units_of_the_input(form: str) -> None:
    plain, diverse = model_of(), model_of(diversity_weight=0.3, diversity_form=form)
    x = batch()
    losses, quantized = diverse(x)
    pairs = zip(quantized.residuals, diverse.codebooks, strict=True)
    levels = [unevenness(r, book.weight, form) for r, book in pairs]
    wanted = plain(x)[0]["loss"] + 0.3 * x.square().mean() * sum(levels) / L
    assert losses["loss"].item() == pytest.approx(wanted.item(), rel=1e-9)


def test_ema_follows_the_written_update_from_counts_at_their_expectation() -> None:
    start = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    book = EmaCodebook(torch.tensor(start, dtype=torch.float32), decay=0.9, rows_per_step=6)
    assert book.counts.tolist() == [2.0, 2.0, 2.0]
    counts, sums = np.full(3, 2.0), start * 2.0
    rng = np.random.default_rng(0)
    for _ in range(4):
        rows, codes = rng.normal(size=(6, 2)), np.array([0, 0, 1, 1, 1, 0])
        book.observe(torch.tensor(rows, dtype=torch.float32), torch.tensor(codes))
        for k in range(3):
            counts[k] = 0.9 * counts[k] + 0.1 * (codes == k).sum()
            sums[k] = 0.9 * sums[k] + 0.1 * rows[codes == k].sum(0)
        total = counts.sum()
        vectors = sums / ((counts + SMOOTHING) / (total + 3 * SMOOTHING) * total)[:, None]
        np.testing.assert_allclose(book.counts.numpy(), counts, rtol=1e-5)
        np.testing.assert_allclose(book.vectors().numpy(), vectors, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(book.vectors()[2].numpy(), [5, 5], rtol=1e-4)  # a code without items stays


def test_ema_replaces_only_dead_codes_by_distinct_rows_of_the_batch() -> None:
    book = EmaCodebook(torch.zeros(4, 2), decay=0.5, rows_per_step=8)
    rows = torch.arange(16.0).reshape(8, 2)
    for _ in range(6):
        book.observe(rows, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    before = book.vectors().clone()
    assert book.revive(rows, 0.05, np.random.default_rng(0)) == 2  # 2 · 0.5^6 = 0.03 of an expected 2
    assert torch.equal(book.vectors()[:2], before[:2])
    new = book.vectors()[2:]
    assert all(any(torch.equal(vector, row) for row in rows) for vector in new)
    assert not torch.equal(new[0], new[1])
    assert book.counts[2:].tolist() == [2.0, 2.0]
    assert torch.equal(book.sums[2:], new * 2)
    assert book.revive(rows, 0.05, np.random.default_rng(0)) == 0


def test_gradient_codes_unused_since_the_last_check_are_replaced() -> None:
    book = Codebook(torch.zeros(4, 2))
    rows = torch.arange(16.0).reshape(8, 2) + 1
    for _ in range(5):
        book.observe(rows, torch.tensor([0, 0, 0, 1, 1, 1, 1, 2]))
    assert book.counts.tolist() == [15, 20, 5, 0]
    assert book.revive(rows, 0.6, np.random.default_rng(0)) == 2  # an equal share is 10
    assert torch.equal(book.weight[:2], torch.zeros(2, 2))
    assert (book.weight[2:] > 0).all()
    assert book.counts.tolist() == [0, 0, 0, 0]


def test_more_dead_codes_than_rows_are_replaced_as_far_as_rows_go() -> None:
    for book in (Codebook(torch.zeros(6, 2)), EmaCodebook(torch.zeros(6, 2), 0.5, 2)):
        rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        for _ in range(8):
            book.observe(rows, torch.tensor([0, 0]))
        assert book.revive(rows, 0.5, np.random.default_rng(0)) == 2
        assert int((book.vectors()[1:] != 0).any(1).sum()) == 2


def test_after_a_step_each_level_sees_its_own_residuals() -> None:
    model = model_of(ema=True)
    x = batch()
    _, quantized = model(x)
    before = [book.vectors().clone() for book in model.codebooks]
    assert model.after_step(quantized, 1, np.random.default_rng(0)) == 0
    for level, book in enumerate(model.codebooks):
        alone = EmaCodebook(before[level].float(), 0.8, N).double()
        alone.start(before[level])
        alone.observe(quantized.residuals[level].detach(), quantized.codes[:, level])
        torch.testing.assert_close(book.vectors(), alone.vectors())
        assert not torch.equal(book.vectors(), before[level])


def test_dead_codes_are_replaced_by_residuals_of_their_level_at_the_set_steps() -> None:
    model = model_of(reset_every=3, threshold_dead_code=0.05)
    far = model.codebooks[1].weight.data
    far[2:] += 100
    x = batch()
    for step in (1, 2):
        _, quantized = model(x)
        assert model.after_step(quantized, step, np.random.default_rng(step)) == 0
    _, quantized = model(x)
    counts = [
        book.counts + torch.bincount(quantized.codes[:, level], minlength=K)
        for level, book in enumerate(model.codebooks)
    ]
    dead = [(count < 0.05 * count.sum() / K).nonzero().flatten().tolist() for count in counts]
    assert dead[1] == [2, 3, 4]
    before = [book.weight.detach().clone() for book in model.codebooks]
    assert model.after_step(quantized, 3, np.random.default_rng(3)) == sum(len(level) for level in dead)
    for level, book in enumerate(model.codebooks):
        alive = [k for k in range(K) if k not in dead[level]]
        assert torch.equal(book.weight[alive], before[level][alive])
        for k in dead[level]:
            assert float((quantized.residuals[level] - book.weight[k]).detach().norm(dim=1).min()) < 1e-12


def test_a_shared_codebook_is_updated_once_from_all_levels() -> None:
    model = model_of(ema=True, shared=True)
    (book,) = model.distinct_codebooks()
    _, quantized = model(batch())
    before = book.counts.clone()
    model.after_step(quantized, 1, np.random.default_rng(0))
    counts = torch.bincount(quantized.codes.flatten(), minlength=K)
    torch.testing.assert_close(book.counts, 0.8 * before + 0.2 * counts.double())


def test_only_what_shall_learn_moves() -> None:
    """One step of the optimizer: encoder, decoder and gradient codebooks move; moving-average codebooks do not."""
    for ema in (False, True):
        model = model_of(ema=ema)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses, quantized = model(batch())
        losses["loss"].backward()
        optimizer.step()
        moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
        assert {name for name in before if name.startswith(("encoder", "decoder"))} <= moved
        assert {name for name in moved if name.startswith("codebooks")} == (
            set() if ema else {f"codebooks.{level}.weight" for level in range(L)}
        )
        used = [quantized.codes[:, level].unique() for level in range(L)]
        if not ema:  # a code without items has no gradient
            for level in range(L):
                rows = (model.codebooks[level].weight - before[f"codebooks.{level}.weight"]).abs().sum(1) > 1e-3
                assert rows.nonzero().flatten().tolist() == used[level].tolist()


def test_inner_layers_of_a_zero_started_encoder_wait_one_step() -> None:
    model = model_of(skip=True)
    first = gradients(model(batch())[0]["loss"], model)
    assert float(first["encoder.stacks.0.0.weight"].abs().max()) == 0
    assert float(first["encoder.stacks.0.2.weight"].abs().max()) > 0

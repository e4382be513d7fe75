"""The lora quantizer: exported codebooks against training-time codes, the loss and its gradient as written, switches, training, report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from sidrec.pipeline.errors import InputError
from sidrec.tokenizer.autoencoders.fitting import start_codebooks
from sidrec.tokenizer.autoencoders.lora_autoencoder import LoraAutoencoder
from sidrec.tokenizer.autoencoders.second_commitment import second_commitment
from sidrec.tokenizer.autoencoders.training import Training
from sidrec.tokenizer.config import parse_arguments
from sidrec.tokenizer.embeddings.item_vectors import ItemVectors
from sidrec.tokenizer.quantizers.lora import Lora
from sidrec.tokenizer.report.lora import summary, usage_report
from sidrec.tokenizer.unique_sids import make_unique

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "tokenizer"
SOURCES = [9, 6]
SIZES = [10, 10, 10]


def settings(training: dict[str, Any] | None = None, **lora: Any) -> Lora:
    small = {
        "e_dim": 6,
        "hidden_sizes": [16],
        "training_steps": 40,
        "batch_size": 64,
        "warmup_steps": 5,
        "evaluate_every": 20,
    }
    return Lora(**{**small, "rank": 3, **(training or {}), **lora})


def item_vectors(n: int = 240, seed: int = 0, widths: list[int] = SOURCES) -> ItemVectors:
    """Two sources that see the same 12 kinds of items, each with noise of its own."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 12, n)
    sources = [rng.standard_normal((12, d))[kinds] + 0.5 * rng.standard_normal((n, d)) for d in widths]
    return ItemVectors([source.astype(np.float32) for source in sources], [1.0] * len(widths))


def spread_model(chosen: Lora, seed: int = 0, by: float = 0.2) -> LoraAutoencoder:
    """A model in which no parameter is 0."""
    model = chosen.build(SOURCES, SIZES, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return model


SWITCHES: list[dict[str, Any]] = [
    {},
    {"share_a": "all"},
    {"inherit_levels": True},
    {"base": "frozen"},
    {"condition_on_previous": True},
    {"assignment": "soft"},
    {"assignment": "topk", "top_k": 3},
    {"assignment": "soft", "condition_on_previous": True, "inherit_levels": True},
    {"condition_on_previous": True, "condition_form": "one_hot"},
    {"condition_on_previous": True, "condition_form": "one_hot", "assignment": "soft"},
    {"alignment_weight": 0.1},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_exported_codebooks_give_the_codes_of_the_model_outside_training(switches: dict[str, Any]) -> None:
    model = spread_model(settings(**switches)).eval()
    x = torch.from_numpy(item_vectors()[:])
    _, quantized = model(x)
    quantizer = model.quantizer()
    codes = quantizer.encode(x.numpy())
    agreement = (codes == quantized.codes.numpy()).all(1).mean()
    assert agreement > 0.99, "but for ties of rounding"
    same = torch.from_numpy((codes == quantized.codes.numpy()).all(1))
    reconstructed = quantizer.codebooks.reconstruct(codes)
    torch.testing.assert_close(torch.from_numpy(reconstructed)[same], quantized.zq[same], atol=1e-4, rtol=1e-4)
    depths = [book.ndim for book in quantizer.codebooks.books]
    assert depths == ([2, 3, 3] if switches.get("condition_on_previous") else [2, 2, 2])


def test_conditioned_codebooks_are_written_out_entry_by_entry() -> None:
    model = spread_model(settings(condition_on_previous=True))
    books = model.quantizer().codebooks.books
    by_level = [book.vectors().detach().numpy() for book in model.codebooks]
    for level in (1, 2):
        w = model.codebooks[level].condition.detach().numpy()
        for p in (0, 4, 9):
            for k in (0, 5):
                np.testing.assert_allclose(
                    books[level][p, k], by_level[level][k] - w @ by_level[level - 1][p], atol=1e-5
                )


def test_codebooks_conditioned_on_one_hot_codes_are_written_out_entry_by_entry() -> None:
    model = spread_model(settings(condition_on_previous=True, condition_form="one_hot"))
    books = model.quantizer().codebooks.books
    for level in (1, 2):
        c, table = (
            part.detach().numpy() for part in (model.codebooks[level].vectors(), model.codebooks[level].condition)
        )
        for p in range(10):
            for k in range(10):
                np.testing.assert_allclose(books[level][p, k], c[k] - table[p], atol=1e-6)


def test_conditioned_codes_can_be_made_unique() -> None:
    vectors = item_vectors()
    quantizer = spread_model(settings(condition_on_previous=True)).quantizer()
    codes = quantizer.encode(vectors)
    unique = make_unique(quantizer.latents(vectors), codes, quantizer.codebooks)
    assert len(np.unique(unique, axis=0)) == len(vectors)
    assert len(np.unique(codes, axis=0)) < len(vectors)


def test_each_source_has_an_encoder_of_its_own() -> None:
    model = spread_model(settings())
    x = torch.from_numpy(item_vectors(8)[:])
    other = x.clone()
    other[:, 9:] += 1
    torch.testing.assert_close(model.encode(x)[:, :3], model.encode(other)[:, :3], atol=0, rtol=0)
    assert not torch.allclose(model.encode(x)[:, 3:], model.encode(other)[:, 3:])


def written_loss(model: LoraAutoencoder, x: torch.Tensor, temperature: float | None) -> torch.Tensor:
    """The whole loss from its formula: hard codes, or mixtures with constant weights; x: [n, D]."""
    training, lora = model.settings, model.lora
    z = model.encoder(x)
    left, before, q = z, None, None
    codebook = commitment = torch.zeros(())
    total = torch.zeros_like(z)
    for level, book in enumerate(model.codebooks):
        c = book.base + book.a() @ book.b()
        told = torch.zeros_like(z)
        if lora.condition_on_previous and level:
            told = q @ book.condition if lora.condition_form == "one_hot" else before.detach() @ book.condition.T
        d = ((left + told).detach()[:, None] - c.detach()[None]).square().sum(-1)  # [n, K]
        two = d.sort(1).values[:, :2]
        q = (
            torch.nn.functional.one_hot(d.argmin(1), len(c)).float()
            if temperature is None
            else torch.softmax(-d / (temperature * (two[:, 1] - two[:, 0]).mean()), 1)
        )
        before = q @ c
        e = before - told
        codebook = codebook + ((e - left.detach()) ** 2).mean() / len(model.codebooks)
        commitment = commitment + ((left - e.detach()) ** 2).mean() / len(model.codebooks)
        left, total = left - e.detach(), total + e
    reconstruction = ((model.decoder(z + (total - z).detach()) - x) ** 2).mean()
    penalty = sum(book.penalty() for book in model.codebooks)  # has a test of its own
    loss = (
        reconstruction + training.quantization_weight * (codebook + training.commitment_weight * commitment) + penalty
    )
    if lora.alignment_weight:
        a, b = (torch.nn.functional.normalize(part, dim=1) for part in z.split([3, 3], dim=1))
        logits = a @ b.T / 0.07
        both = torch.log_softmax(logits, 1).diagonal() + torch.log_softmax(logits, 0).diagonal()
        loss = loss - lora.alignment_weight * both.mean() / 2
    return loss


@pytest.mark.parametrize("switches", [s for s in SWITCHES if s.get("assignment") != "topk"], ids=str)
def test_the_loss_and_its_gradient_equal_the_written_formula(switches: dict[str, Any]) -> None:
    model = spread_model(settings({"commitment_weight": 0.4, "quantization_weight": 0.8}, **switches))
    x = torch.from_numpy(item_vectors(50)[:])
    soft = switches.get("assignment") == "soft"
    progress = 0.5  # temperature_start 1, temperature_end .01: 0.1 in the middle
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients, values = [], []
    for loss in (model(x, progress)[0]["loss"], written_loss(model, x, 0.1 if soft else None)):
        values.append(float(loss.detach()))
        parameters = [model.get_parameter(name) for name in names]
        gradients.append(torch.autograd.grad(loss, parameters))
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    for name, gradient, expected in zip(names, *gradients, strict=True):
        torch.testing.assert_close(
            gradient, expected, atol=1e-5, rtol=2e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert float(expected.abs().max()) > 0, name


@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_second_commitment_is_the_formula_and_its_gradient_reaches_codes_and_encoder(
    reduction: str, condition: bool
) -> None:
    """sum or mean over levels of ||r_{l+1} - sg[r_l - C_l[k_l]]||^2, with r_{l+1} = r_l less the mixture; straight from the weights."""
    switches: dict[str, Any] = {"assignment": "soft", "condition_on_previous": condition, "level_reduction": reduction}
    model = spread_model(settings(second_commitment_weight=0.3, quantization_weight=2.0, **switches)).train()
    plain = spread_model(settings(quantization_weight=2.0, **switches)).train()
    x = torch.from_numpy(item_vectors()[:])
    losses, quantized = model(x, 0.5)
    terms, before = [], None
    for level, book in enumerate(model.codebooks):
        told = before.detach() @ book.condition.T if condition and before is not None else 0.0
        rows = quantized.residuals[level] + told
        weights = model.soft.weights(rows.detach(), book.vectors(), 0.5)  # type: ignore[union-attr]
        before = weights @ book.vectors()
        nearest = book.vectors()[(rows[:, None] - book.vectors()[None]).square().sum(2).argmin(1)]
        left, by_code = rows - before, (rows - nearest).detach()
        terms.append((left - by_code).square().sum() / left.numel())
    wanted = sum(terms) if reduction == "sum" else sum(terms) / len(terms)
    assert losses["second_commitment"].item() == pytest.approx(wanted.item(), rel=1e-4)  # type: ignore[union-attr]
    assert losses["loss"].item() == pytest.approx(plain(x, 0.5)[0]["loss"].item() + 0.6 * wanted.item(), rel=1e-4)  # type: ignore[union-attr]
    learnt = [model.codebooks[0].base, model.encoder.ends()[0][0].weight]
    by_model = torch.autograd.grad(losses["second_commitment"], learnt, retain_graph=True)
    for gradient, formula in zip(by_model, torch.autograd.grad(wanted, learnt), strict=True):
        torch.testing.assert_close(gradient, formula, rtol=1e-3, atol=1e-6)
        assert float(gradient.abs().max()) > 1e-4


def test_the_second_commitment_vanishes_with_hard_codes_value_and_gradient() -> None:
    model = spread_model(settings()).train()
    x = torch.from_numpy(item_vectors()[:])
    _, quantized = model(x)
    terms = second_commitment(quantized.residuals, quantized.chosen, quantized.chosen)
    assert [term.item() for term in terms] == [0, 0, 0]
    gradients = torch.autograd.grad(sum(terms), list(model.parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    soft = spread_model(settings(assignment="soft", second_commitment_weight=1.0)).eval()
    assert soft(x)[0]["second_commitment"].item() == 0


@pytest.mark.parametrize("assignment", ["soft", "topk"])
def test_soft_assignment_ends_in_the_hard_codes(assignment: str) -> None:
    model = spread_model(settings(assignment=assignment, temperature_end=1e-7))
    z = model.encode(torch.from_numpy(item_vectors(60)[:])).detach()
    hard, end = model.quantize_at(z, None), model.quantize(z, progress=1.0)
    middle = model.quantize(z, progress=0.1)
    assert torch.equal(end.codes, hard.codes)
    torch.testing.assert_close(end.zq, hard.zq)
    assert float((middle.zq - hard.zq).detach().abs().max()) > 0.1
    assert torch.equal(model.eval().quantize(z, progress=0.1).zq, hard.zq), "outside training codes are hard"


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_what_is_summed_is_what_the_residual_loses(switches: dict[str, Any]) -> None:
    model = spread_model(settings(**switches))
    z = model.encode(torch.from_numpy(item_vectors(40)[:]))
    quantized = model.quantize(z, progress=0.2)
    for level in range(2):
        left = quantized.residuals[level] - quantized.chosen[level]
        torch.testing.assert_close(quantized.residuals[level + 1], left)
    torch.testing.assert_close(quantized.zq, z - (quantized.residuals[-1] - quantized.chosen[-1]), atol=1e-5, rtol=1e-5)


def test_diversity_and_dead_codes_look_at_what_is_compared_with_the_codes() -> None:
    model = spread_model(
        settings({"diversity_weight": 0.1, "reset_every": 1, "threshold_dead_code": 0.9}, condition_on_previous=True)
    )
    x = torch.from_numpy(item_vectors(60)[:])
    _, quantized = model(x)
    before = [book.vectors().detach().clone() for book in model.codebooks]
    assert model.after_step(quantized, 1, np.random.default_rng(0)) > 0
    for level, book in enumerate(model.codebooks):
        moved = (book.vectors().detach() != before[level]).any(1)
        used = torch.bincount(quantized.codes[:, level], minlength=10)
        assert torch.equal(moved, used < 0.9 * 6)
        apart = book.vectors().detach()[moved][:, None] - quantized.coded[level].detach()
        assert float(apart.norm(dim=2).min(1).values.max()) < 1e-5
    replaced = model.diversity(quantized)
    quantized.residuals = [torch.zeros_like(residual) for residual in quantized.residuals]
    assert float(model.diversity(quantized).detach()) == float(replaced.detach()) > 0


def train(model: LoraAutoencoder, chosen: Lora, vectors: ItemVectors, sizes: list[int], seed: int) -> None:
    """Train by the stage's own loop."""
    Training(model, vectors, chosen, seed, {}).run(lambda: start_codebooks(model, chosen, vectors, sizes, seed))


def trained(chosen: Lora, seed: int = 0) -> tuple[LoraAutoencoder, LoraAutoencoder]:
    """The model before and after training, by the stage's own loop."""
    vectors = item_vectors()
    model, untouched = (chosen.build(SOURCES, SIZES, seed) for _ in range(2))
    train(model, chosen, vectors, SIZES, seed)
    return untouched, model


@pytest.mark.parametrize("base", ["frozen", "trainable"])
def test_a_frozen_base_stays_where_kmeans_put_it_and_the_rest_moves(base: str) -> None:
    chosen = settings({"keep": "last"}, base=base, condition_on_previous=True)
    start, model = trained(chosen)
    start_codebooks(start, chosen, item_vectors(), SIZES, 0)
    for before, after in zip(start.codebooks, model.codebooks, strict=True):
        assert torch.equal(before.base, after.base) == (base == "frozen")
        assert not torch.equal(before.a_learnt, after.a_learnt)
        assert float(after.b_learnt.detach().norm()) > 0
    assert float(model.codebooks[1].condition.detach().norm()) > 0


@pytest.mark.parametrize("name", ["lora_document", "lora"])
def test_summed_penalties_switch_the_low_rank_part_off_and_means_do_not(name: str) -> None:
    """||A B|| / ||base|| after 200 steps with the penalties of the two configurations, on vectors of 384 + 64 numbers."""
    widths, sizes = [384, 64], [64, 64, 64]
    _, lora = parse_arguments(["--config", str(CONFIGS / f"{name}.yaml")], stage="sid")
    assert isinstance(lora, Lora)
    small = {"e_dim": 32, "training_steps": 200, "evaluate_every": 200, "keep": "last"}
    chosen = replace(lora, hidden_sizes=[16], batch_size=64, warmup_steps=5, **small)
    model = chosen.build(widths, sizes, seed=0)
    train(model, chosen, item_vectors(widths=widths), sizes, 0)
    shares = torch.stack([book.shares() for book in model.codebooks]).detach()  # [L, sources]
    if name == "lora_document":
        assert float(shares.max()) < 1e-3
    else:
        assert float(shares.min()) > 0.03


def test_the_document_preset_is_lora_but_for_its_penalties() -> None:
    texts = [yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("lora", "lora_document")]
    differing = {key for key in texts[0] | texts[1] if texts[0].get(key) != texts[1].get(key)}
    assert differing - {"share_a", "base"} == {
        "penalty_reduction",
        "orthogonality_weight",
        "layer0_multiplier",
    }


def test_the_report_equals_a_count_by_hand() -> None:
    vectors = item_vectors()
    model = spread_model(settings(assignment="soft"))
    report = usage_report(model, vectors)
    x = vectors[:]
    quantizer = model.quantizer()
    codes = quantizer.encode(vectors)
    z = quantizer.latents(vectors)[:]
    left = z.astype(np.float64)
    for level, of_level in enumerate(report["levels"]):
        book = quantizer.codebooks.books[level]
        for figures, where in zip(
            (of_level, *of_level["sources"]), (slice(0, 6), slice(0, 3), slice(3, 6)), strict=True
        ):
            d = np.sort(((left[:, None, where] - book[None, :, where]) ** 2).sum(-1), axis=1)
            nearest = ((left[:, None, where] - book[None, :, where]) ** 2).sum(-1).argmin(1)
            counts = np.bincount(nearest, minlength=10)
            p = counts[counts > 0] / 240
            assert figures["usage"] == pytest.approx((counts > 0).mean())
            assert figures["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
            assert figures["top_10_share"] == 1.0
            assert figures["margin_mean"] == pytest.approx((d[:, 1] - d[:, 0]).mean(), rel=1e-3)
            assert figures["margin_p5"] == pytest.approx(np.quantile(d[:, 1] - d[:, 0], 0.05), rel=2e-2, abs=1e-4)
            if where != slice(0, 6):
                assert figures["agreement"] == pytest.approx((nearest == codes[:, level]).mean(), abs=0.01)
        assert [source["lora_share"] for source in of_level["sources"]] == pytest.approx(
            model.codebooks[level].shares().tolist()
        )
        left -= book[codes[:, level]]
    gap = report["soft_hard_gap"]
    assert gap["hard"] == pytest.approx(((quantizer.reconstruct(codes) - x) ** 2).sum(1).mean(), rel=1e-3)
    assert gap["soft"] != pytest.approx(gap["hard"], rel=1e-6)
    assert "soft_hard_gap" not in usage_report(spread_model(settings()), vectors)


def test_the_summary_names_every_level_and_source() -> None:
    levels = [
        {"sources": [{"lora_share": 0.25}, {"lora_share": 0.0311}]},
        {"sources": [{"lora_share": 0.0}, {"lora_share": 1.5}]},
    ]
    assert "25.0% and 3.1%; 0.0% and 150.0%." in summary({"levels": levels})
    assert "mixtures 0.1000, of hard codes 0.1250." in summary(
        {"levels": levels, "soft_hard_gap": {"soft": 0.1, "hard": 0.125}}
    )


def test_top_10_share_counts_the_largest_codes() -> None:
    sizes = [40, 40]
    model = settings().build(SOURCES, sizes, seed=0)
    vectors = item_vectors()
    counts = np.sort(np.bincount(model.quantizer().encode(vectors)[:, 0], minlength=40))[::-1]
    assert usage_report(model, vectors)["levels"][0]["top_10_share"] == pytest.approx(counts[:10].sum() / 240)


def test_learning_by_name_is_reproducible_and_leaves_its_report_and_curve(tmp_path: Path) -> None:
    vectors, chosen = item_vectors(), settings(assignment="topk", condition_on_previous=True)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        chosen.fit(vectors, SIZES, 3, tmp_path / name).save(tmp_path / name / "quantizer.safetensors")
    for file in ("quantizer.safetensors", "lora.json", "training.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    curve = json.loads((tmp_path / "first" / "training.json").read_text())["rows"]
    assert [row["step"] for row in curve] == [0, 20, 40]
    assert curve[0]["lora_share_0"] == 0
    assert curve[-1]["lora_share_0"] > 0
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_training_lowers_the_error_below_its_kmeans_start() -> None:
    vectors = item_vectors()
    errors = []
    for steps in (1, 120):
        chosen = settings({"training_steps": steps, "warmup_steps": 1, "evaluate_every": 200, "keep": "last"})
        quantizer = chosen.fit(vectors, SIZES, 0)
        errors.append(quantizer.mean_squared_errors(vectors, quantizer.encode(vectors))[-1])
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("share_a", "levels", "share_a is 'levels'; it must be one of `sources`, `all`"),
        ("base", "fixed", "base is 'fixed'"),
        ("penalty_reduction", "max", "penalty_reduction is 'max'"),
        ("assignment", "top-k", "`hard`, `soft`, `topk`"),
        ("rank", 0, "rank is 0; it must be a whole number of at least 1"),
        ("condition_form", "one_hot", "condition_form is set, but has no effect while condition_on_previous is false"),
        ("l2_weight", -1.0, "l2_weight is -1.0"),
        ("relative_weight", float("nan"), "relative_weight is nan"),
        ("top_k", 3, "top_k is set, but has no effect while assignment is `hard`"),
        ("temperature_end", 0.1, "temperature_end is set, but has no effect"),
        ("relative_limit", 0.3, "relative_limit is set, but has no effect while relative_weight is 0"),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Lora(**{field: value})


def test_the_temperature_must_fall_and_stay_above_0() -> None:
    for start, end in ((0.1, 0.5), (1.0, 0.0)):
        with pytest.raises(InputError, match="must fall, and end above 0"):
            Lora(assignment="soft", temperature_start=start, temperature_end=end)


@pytest.mark.parametrize(
    ("training", "lora", "sizes", "n_sources", "reason"),
    [
        ({"reset_every": 5}, {"base": "frozen"}, SIZES, 2, "reset_every is set, .* frozen base"),
        ({"sinkhorn_epsilon": 0.1}, {"assignment": "soft"}, SIZES, 2, "sinkhorn_epsilon is set, .* mixes codes"),
        ({}, {"second_commitment_weight": 0.1}, SIZES, 2, "second_commitment_weight is set, .* the term is 0"),
        ({}, {"assignment": "topk", "top_k": 11}, SIZES, 2, "top_k 11 is more than the 10 codes"),
        ({}, {"share_a": "all"}, [10, 8], 2, "share_a `all` needs level_sizes that are all equal, not 10 8"),
        ({}, {"inherit_levels": True}, [10, 8], 2, "inherit_levels needs level_sizes"),
        ({}, {"rank": 7}, SIZES, 2, "rank 7 is above the smallest of level_sizes and e_dim, 6"),
        ({"e_dim": 3}, {}, SIZES, 4, "e_dim 3 is less than one number for each of 4 sources"),
        ({}, {"alignment_weight": 0.1}, SIZES, 1, "one source only"),
        ({}, {"alignment_weight": 0.1}, SIZES, 4, "e_dim 6 is no multiple of 4 sources; --e_dim 8 is"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    training: dict[str, Any], lora: dict[str, Any], sizes: list[int], n_sources: int, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        settings(training, **lora).check(item_vectors(20, widths=[4] * n_sources), sizes)


def test_the_check_before_any_work_knows_the_sources() -> None:
    with pytest.raises(InputError, match="one source only"):
        settings(alignment_weight=0.1).check(np.zeros((50, 4), dtype=np.float32), SIZES)
    settings(alignment_weight=0.1).check(item_vectors(), SIZES)

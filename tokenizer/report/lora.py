"""What low-rank codebooks do: per level and source, how evenly and how clearly codes are used, and how much of a code is A B."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidrec.pipeline.html import table
from sidrec.tokenizer.autoencoders.lora_autoencoder import LoraAutoencoder
from sidrec.tokenizer.autoencoders.lora_codebook import LoraCodebook
from sidrec.tokenizer.autoencoders.soft_assignment import nearest_gaps
from sidrec.tokenizer.autoencoders.training import perplexity
from sidrec.tokenizer.embeddings.item_vectors import Rows, chunks
from sidrec.tokenizer.kmeans.nearest import distances

TOP_CODES = 10


class Tally:
    """The nearest codes of rows that come chunk by chunk, and how much nearer they are than the second nearest."""

    def __init__(self) -> None:
        self.codes: list[np.ndarray] = []
        self.margins: list[np.ndarray] = []

    def add(self, rows: Tensor, vectors: Tensor) -> None:
        """rows: [n, e], vectors: [K, e]."""
        squared = distances(rows, vectors)
        self.codes.append(squared.argmin(1).numpy())
        self.margins.append(nearest_gaps(squared).numpy())

    def figures(self, n_codes: int) -> dict[str, float]:
        """Usage and margins of all rows so far."""
        codes, margins = np.concatenate(self.codes), np.concatenate(self.margins)
        counts = np.sort(np.bincount(codes, minlength=n_codes))[::-1]
        return {
            "usage": float((counts > 0).mean()),
            "perplexity": perplexity(codes),
            "top_10_share": float(counts[:TOP_CODES].sum() / len(codes)),
            "margin_mean": float(margins.mean(dtype=np.float64)),
            "margin_p5": float(np.quantile(margins, 0.05)),
        }


@torch.inference_mode()
def usage_report(model: LoraAutoencoder, vectors: Rows) -> dict[str, Any]:
    """The figures of lora.json. vectors: [N, D], what the model was trained on; the model is left in eval() mode.

    levels: per level, of the codes that are exported: `usage` (share of the codes that some item has), `perplexity`, `top_10_share` (of
    the items, on the 10 codes with most), `margin_mean` and `margin_p5` (second smallest less smallest squared distance). Their
    `sources`: the same of the codes that the source alone would choose for its part of what the level codes, `agreement` (share of the
    items for which that is the exported code), and `lora_share`, ||A B^m|| / ||base^m||. soft_hard_gap, where assignment is soft: the
    reconstruction error (squared, summed over D, mean over items) with mixtures at the last temperature, and with hard codes.
    """
    model.eval()
    blocks = model.codebooks[0].blocks
    joint = [Tally() for _ in model.codebooks]
    alone = [[Tally() for _ in blocks] for _ in model.codebooks]
    errors = {"soft": 0.0, "hard": 0.0}
    for _, chunk in chunks(vectors):
        x = torch.tensor(chunk)
        z = model.encode(x)
        hard = model.quantize_at(z, None)
        errors["hard"] += float((model.decode(hard.zq) - x).square().sum()) / len(vectors)
        if model.soft:
            soft = model.quantize_at(z, 1.0)
            errors["soft"] += float((model.decode(soft.zq) - x).square().sum()) / len(vectors)
        for level, (book, coded) in enumerate(zip(model.codebooks, hard.coded, strict=True)):
            joint[level].add(coded, book.vectors())
            for tally, rows, part in zip(
                alone[level], coded.split(blocks, dim=1), book.vectors().split(blocks, dim=1), strict=True
            ):
                tally.add(rows, part)
    levels = [_level(*level) for level in zip(model.codebooks, joint, alone, strict=True)]
    return {"levels": levels} | ({"soft_hard_gap": errors} if model.soft else {})


def _level(book: LoraCodebook, joint: Tally, alone: list[Tally]) -> dict[str, Any]:
    n_codes, codes = len(book.base), np.concatenate(joint.codes)
    sources = []
    for tally, share in zip(alone, book.shares().tolist(), strict=True):
        agreement = float((np.concatenate(tally.codes) == codes).mean())
        sources.append(tally.figures(n_codes) | {"agreement": agreement, "lora_share": share})
    return joint.figures(n_codes) | {"sources": sources}


def summary(report: dict[str, Any]) -> str:
    """One sentence for the end of the stage: how much of the codes is A B, and what hard codes cost. report: what `usage_report` gave."""
    levels = [" and ".join(f"{source['lora_share']:.1%}" for source in level["sources"]) for level in report["levels"]]
    sentence = f"Low-rank part, ||A B|| / ||base|| of each source, level by level: {'; '.join(levels)}"
    gap = report.get("soft_hard_gap")
    return sentence + (f"; error of mixtures {gap['soft']:.4f}, of hard codes {gap['hard']:.4f}." if gap else ".")


def table_of_levels(report: dict[str, Any]) -> str:
    """HTML: a row a level, and below it a row a source. report: what `usage_report` gave."""
    rows: list[dict[str, Any]] = []
    for depth, level in enumerate(report["levels"], start=1):
        rows.append({"": f"level {depth}"} | {name: value for name, value in level.items() if name != "sources"})
        rows += [{"": f"source {place}"} | source for place, source in enumerate(level["sources"], start=1)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    sentence = "<p>The low-rank codebooks: what is exported, and what each source alone would choose.</p>"
    return sentence + table([name.replace("_", " ") for name in names], cells)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

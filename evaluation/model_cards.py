"""Test results in the model cards of a run: each stage's README.md has a place for them, which evaluation fills."""

from __future__ import annotations

from pathlib import Path

from sidrec.pipeline.files import atomic_path, read_text

CARD = "README.md"
BEGIN, END = "<!-- test results -->", "<!-- end of test results -->"
NOT_MEASURED = "Not measured yet: `sidrec evaluate` puts the table of test results here."


def results_part(table: str) -> str:
    """A card's part between the two marks, marks included."""
    return f"{BEGIN}\n{table.strip()}\n{END}"


def fill_cards(run_dir: Path, models: list[str], table: str) -> None:
    """Put `table` (markdown) into the card of every one of `models` that has one with a place for it and says something else."""
    for model in models:
        card = run_dir / model / CARD
        text = read_text(card) if card.exists() else ""
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        filled = before + results_part(table) + after
        if begin and end and filled != text:
            with atomic_path(card) as temporary:
                temporary.write_text(filled, encoding="utf-8")

"""Rewards: plain functions of a rollout's item codes and the target's, one float each, testable alone.

TRL calls them with lists and any other column as a keyword. Codes are compared, never strings.
"""

from __future__ import annotations

from typing import Any


def exact_hit(codes: list[tuple[int, ...]], target_codes: list[tuple[int, ...]], **_columns: Any) -> list[float]:
    """1 for the item that was taken next, else 0: its mean over a group of G is the group's Recall@G / G."""
    return [float(tuple(found) == tuple(wanted)) for found, wanted in zip(codes, target_codes, strict=True)]


def prefix_credit(codes: list[tuple[int, ...]], target_codes: list[tuple[int, ...]], **_columns: Any) -> list[float]:
    """The share of leading codes that agree with the target's: d / L for the first d of L codes; 0 to 1."""
    return [_agreeing(found, wanted) / len(wanted) for found, wanted in zip(codes, target_codes, strict=True)]


def _agreeing(found: tuple[int, ...], wanted: tuple[int, ...]) -> int:
    depth = 0
    while depth < len(wanted) and found[depth] == wanted[depth]:
        depth += 1
    return depth

"""Checks of single settings in a configuration dataclass: in range, among the choices, with an effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sidrec.pipeline.errors import InputError


def check_least(settings: object, name: str, least: int | float) -> None:
    """Raise InputError when a field is no finite number of at least `least`, or no whole one where `least` is whole."""
    value = getattr(settings, name)
    whole = isinstance(least, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not least <= value < math.inf:
        kind = "whole number" if whole else "number"
        raise InputError(f"{name} is {value!r}; it must be a {kind} of at least {least:g}.")


def check_choice(settings: object, name: str, choices: Sequence[str]) -> None:
    """Raise InputError when a field is none of `choices`."""
    if getattr(settings, name) not in choices:
        listed = ", ".join(f"`{choice}`" for choice in choices)
        raise InputError(f"{name} is {getattr(settings, name)!r}; it must be one of {listed}.")


def refuse_idle(settings: Any, name: str, has_effect: bool, because: str) -> None:
    """Raise InputError for a field that differs from its default and would have no effect."""
    default = next(item.default for item in fields(settings) if item.name == name)
    if not has_effect and getattr(settings, name) != default:
        raise InputError(f"{name} is set, but has no effect while {because}; leave it out.")

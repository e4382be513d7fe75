"""What decides a stage's result: every setting but those that are known not to."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import fields
from typing import Any


def fingerprint(*configs: Any, leave_out: Collection[str]) -> dict[str, Any]:
    """Every field of the dataclasses `configs`, by name, as JSON holds it, without those named in `leave_out`.

    leave_out: settings that say where the stage runs, what it prints or where it sends copies. A new field belongs to the fingerprint
    unless it is put there. Raises AssertionError for two configs with a field of the same name, and for a name that is no field.
    """
    values: dict[str, Any] = {}
    for config in configs:
        names = {field.name for field in fields(config)}
        assert not names & values.keys(), f"two configs have {sorted(names & values.keys())}"
        values |= {name: getattr(config, name) for name in names}
    unknown = set(leave_out) - values.keys()
    assert not unknown, f"no config has {sorted(unknown)}"
    decisive = {name: value for name, value in sorted(values.items()) if name not in leave_out}
    return json.loads(json.dumps(decisive, default=str))

"""Settings that somebody might give by mistake: of another type, below the least, beyond the largest, of no meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sidrec.data.settings import PrepareConfig
from sidrec.evaluation.compare import CompareConfig
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.config import Setting, settings_of
from sidrec.rl.settings import CONFIGS as RL_CONFIGS
from sidrec.serving.add_items import AddItemsConfig
from sidrec.serving.ask import AskConfig
from sidrec.serving.catalogue import CatalogueConfig
from sidrec.serving.compare_models import CompareModelsConfig
from sidrec.serving.drift import DriftConfig
from sidrec.serving.export import ExportConfig
from sidrec.serving.export_events import ExportEventsConfig
from sidrec.serving.export_lists import ExportListsConfig
from sidrec.serving.keys import KeysConfig
from sidrec.serving.make_bundle import BundleConfig
from sidrec.serving.recommend import RecommendConfig
from sidrec.serving.remove_items import RemoveItemsConfig
from sidrec.serving.serve import ServeConfig
from sidrec.serving.update import UpdateConfig
from sidrec.sft.continued import ContinuedConfig
from sidrec.sft.settings import CONFIGS as SFT_CONFIGS
from sidrec.tokenizer.config import TokenizerConfig
from sidrec.tokenizer.quantizers import QUANTIZERS

NUMBERS = "-1 0 1 2 3 7 0.5 -0.5 1e-300 1e308 nan inf -inf 1e3 99999999999999999999"
NO_NUMBERS = "true none null maybe [] {} é☃ ../x /dev/null /proc/self/mem sft eval_loss --"
WORDS = ("", " ", '{"a": 1}', "a" * 300, *NUMBERS.split(), *NO_NUMBERS.split())
OF_YAML = "null true false -1 0 1 2 2147483648 9223372036854775808 0.5 -0.5 .nan .inf '' x no 2026-01-01 [] [1] [a] [[1]] {} {a: 1}"
VALUES: tuple[Any, ...] = tuple(yaml.safe_load(f"[{', '.join(OF_YAML.replace('{a: 1}', '{a:1}').split())}]"))
PLACES = ("run_dir", "quantizer", "bundle", "store", "out")
TOO_LONG = (
    "max_steps",
    "num_train_epochs",
    "seeds",
    "passes",
    "next",
)  # of which a large number is no mistake, and takes its time


def settings_of_commands() -> dict[str, list[Setting]]:
    """By command, and for `sid` by quantizer too: every setting that it has but for the place of what is read."""
    kinds: dict[str, list[type]] = {
        "data": [PrepareConfig],
        "embeddings": [TokenizerConfig],
        "sft": list(SFT_CONFIGS),
        "rl": list(RL_CONFIGS),
        "evaluation": [EvaluateConfig],
        **{name: [RecommendConfig] for name in ("recommend", "recommend to all", "recommend by bundle to users")},
        "compare": [CompareConfig],
        "compare models": [CompareModelsConfig],
        "ask": [AskConfig],
        "drift": [DriftConfig],
        "drift by bundle": [DriftConfig],
        "export-events": [ExportEventsConfig],
        "export-lists": [ExportListsConfig],
        "keys": [KeysConfig],
        "catalogue": [CatalogueConfig],
        "add-items": [AddItemsConfig],
        "remove-items": [RemoveItemsConfig],
        "update": [UpdateConfig, ContinuedConfig],
        "export": [ExportConfig],
        "serve": [ServeConfig],
        "bundle": [BundleConfig],
        **{f"sid {name}": [TokenizerConfig, kind] for name, kind in QUANTIZERS.items()},
    }
    return {
        name: [setting for kind in classes for setting in settings_of(kind) if setting.name not in PLACES]
        for name, classes in kinds.items()
    }


def odd_flags(rng: np.random.Generator, settings: list[Setting]) -> list[str]:
    """One to three settings with odd words behind them."""
    flags: list[str] = []
    for setting in _some(rng, settings):
        flags += [f"--{setting.name}", *(_word(rng, setting) for _ in range(_how_many(rng)))]
    return flags


def odd_yaml(rng: np.random.Generator, settings: list[Setting], file: Path) -> list[str]:
    """Write a YAML file with one to three odd values; the flag that names it."""
    content: dict[Any, Any] = {}
    for setting in _some(rng, settings):
        value = VALUES[rng.integers(len(VALUES))]
        content[setting.name] = _sane_length(
            setting, setting.choices[0] if setting.choices and rng.random() < 0.3 else value
        )
    if rng.random() < 0.1:
        content[("nonsense", 3, "run-dir", "env", "config")[rng.integers(5)]] = VALUES[rng.integers(len(VALUES))]
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return ["--config", str(file)]


def _some(rng: np.random.Generator, settings: list[Setting]) -> list[Setting]:
    places = rng.choice(len(settings), size=min(len(settings), int(rng.integers(1, 4))), replace=False)
    return [settings[place] for place in places]


def _how_many(rng: np.random.Generator) -> int:
    return int(rng.choice([0, 1, 1, 1, 1, 1, 1, 2, 3]))


def _word(rng: np.random.Generator, setting: Setting) -> str:
    if setting.choices and rng.random() < 0.5:
        return str(setting.choices[rng.integers(len(setting.choices))])
    return str(_sane_length(setting, WORDS[rng.integers(len(WORDS))]))


def _sane_length(setting: Setting, value: Any) -> Any:
    """`value`, or 3 where it is a valid order to work for years."""
    if setting.name not in TOO_LONG or isinstance(value, bool | list | dict | None):
        return value
    try:
        return 3 if float(value) > 3 else value
    except ValueError:
        return value

"""Whose model a training began with: its public name and licence, for the card. A local path means nothing to who reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, try_to_load_from_cache

from sidrec.evaluation.model_cards import CARD
from sidrec.pipeline.packaged_models import packaged_model


@dataclass(frozen=True)
class BaseModel:
    """name: on the hub, None where the folder's card names none. licence: as the hub spells it, None where no card says it. changed: what
    was done to the published weights, in words."""

    name: str | None
    licence: str | None
    changed: str = ""

    @classmethod
    def of(cls, name_or_folder: str) -> BaseModel:
        """The model that `model_name_or_path` names: a packaged one, a folder (by its README.md), or one of the hub (by its card, where it
        has been downloaded)."""
        packaged = packaged_model(name_or_folder)
        if packaged is not None:
            return cls(packaged.public_name, packaged.licence, packaged.changed)
        folder = Path(name_or_folder)
        if folder.is_dir():
            fields = card_fields(folder / CARD)
            return cls(fields.get("base_model"), fields.get("license"))
        cached = try_to_load_from_cache(name_or_folder, CARD) if name_or_folder.count("/") <= 1 else None
        return cls(name_or_folder, card_fields(Path(cached)).get("license") if isinstance(cached, str) else None)

    def in_words(self) -> str:
        """As the card says it, after the model's size."""
        name = f"`{self.name}`" if self.name else "a local model whose folder does not say its public name,"
        licence = f"licence {self.licence}" if self.licence else "licence: see its publisher"
        return f"{name} ({licence}{f'; {self.changed}' if self.changed else ''})"


def card_fields(path: Path) -> dict[str, Any]:
    """`base_model` and `license` of a card's header, where they are one word each; nothing where there is no such file."""
    if not path.is_file():
        return {}
    fields = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    return {name: fields[name] for name in ("base_model", "license") if isinstance(fields.get(name), str)}

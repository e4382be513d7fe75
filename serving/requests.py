"""What the service is asked and what it answers, as JSON (docs/serving.md, "Over HTTP"). An unknown field is refused, and so is a number
that stands as a text."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from sidrec.decoding.drawn_lists import GREATEST_TEMPERATURE, LEAST_TEMPERATURE
from sidrec.serving.item_filter import GREATEST_INTEGER
from sidrec.serving.store import MOST_CHARACTERS

MOST_CONDITIONS, MOST_VALUES = 20, 200  # of a request's filter, and of one condition's list
Id = Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARACTERS)]
Number = Annotated[int, Field(gt=-GREATEST_INTEGER, lt=GREATEST_INTEGER)]
Value = bool | Number | float | str
Cell = Value | list[Value] | None


class Asked(BaseModel):
    """What every body is: checked strictly, frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Condition(Asked):
    """Such as {"column": "price", "op": "<", "value": 20}; the ops are =, !=, <, <=, >, >=, in and contains."""

    column: str
    op: str
    value: Value | Annotated[list[Value], Field(max_length=MOST_VALUES)]


class ListRequest(Asked):
    """One list. user: whose history the store has; or history: item ids, oldest first. exclude: items that are not recommended."""

    user: Id | None = None
    history: list[Id] | None = None
    k: int = Field(10, ge=1)
    where: list[Condition] = Field([], max_length=MOST_CONDITIONS)
    exclude: list[Id] = []
    keep_seen: bool = Field(False, description="Items of the history may be recommended.")
    diversity: int | None = Field(None, ge=1, description="The most items of the list that may share their first code.")
    temperature: float | None = Field(
        None,
        ge=LEAST_TEMPERATURE,
        le=GREATEST_TEMPERATURE,
        description="Draw the list at random, at this temperature, and store each slot's probability, so that other policies can be judged "
        "by what was served.",
    )

    @model_validator(mode="after")
    def names_one_history(self) -> ListRequest:
        if (self.user is None) == (self.history is None):
            raise ValueError("give user or history, one of the two")
        if self.temperature is not None and (self.where or self.exclude or self.diversity):
            raise ValueError(
                "a list with a temperature is drawn from all items; leave where, exclude and diversity out"
            )
        return self


class RecommendCall(Asked):
    requests: list[ListRequest] = Field(min_length=1)


class ListedItem(BaseModel):
    """score: log probability of the item after the history, null where there is no history. cold: never taken in training."""

    rank: int
    item_id: str
    title: str
    score: float | None
    sid: str
    cold: bool


class List(BaseModel):
    """reason: null, or why the list is short, or not the model's, or what of the request is unknown. drawn: at random, with a
    temperature."""

    request_id: str
    user: str | None
    reason: str | None
    drawn: bool
    items: list[ListedItem]


class Recommended(BaseModel):
    model: str
    catalogue_version: int
    lists: list[List]


class EventBody(Asked):
    """event_id: your own; the same one twice is one event. timestamp: in the unit of your log. value: such as stars or a price."""

    event_id: Id
    user_id: Id
    item_id: Id
    timestamp: int
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    extra: dict[str, Any] | None = None


class EventsCall(Asked):
    events: list[EventBody] = Field(min_length=1)


class EventsAnswer(BaseModel):
    """Both are on the disk."""

    accepted: int
    duplicates: int


class UserDeleted(BaseModel):
    """How many rows are gone. note: what deleting them does not undo."""

    events: int
    lists: int
    note: str


class ItemsAnswer(BaseModel):
    """total: how many match. items: every column of the catalogue, and sid."""

    total: int
    items: list[dict[str, Any]]


class ItemsCall(Asked):
    """items: objects with item_id, for new items title, and any of the catalogue's columns. new_sids: items whose text changes get
    new semantic IDs."""

    items: list[dict[str, Cell]] = Field(min_length=1)
    new_sids: bool = False


class CatalogueChanged(BaseModel):
    catalogue_version: int
    added: int
    changed: int
    removed: int
    items: int


class Versions(BaseModel):
    """current: the number of the one that is served. versions: as `sidrec.serving.versions.Version`."""

    current: int
    versions: list[dict[str, int | str]]


class Drift(BaseModel):
    """sentences: of `sidrec drift`, the last one whether training pays."""

    days: float
    sentences: list[str]


class BundleCall(Asked):
    """bundle: a path below the folder that --bundles named when the service was started."""

    bundle: Id


class BundleSwitched(BaseModel):
    model: str
    catalogue_version: int

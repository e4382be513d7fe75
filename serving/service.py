"""What stands behind the routes: the bundle that is served, the model's thread, the store and the log of served lists."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from sidrec.data.item_file import items_of_records
from sidrec.pipeline.errors import InputError
from sidrec.serving.about import content_of
from sidrec.serving.answer import Question, may_be_recommended
from sidrec.serving.batcher import Answer, Batcher, Job, Wish, warm_up
from sidrec.serving.bundle import Bundle
from sidrec.serving.changes import add_table, remove_ids
from sidrec.serving.drift import drift_of
from sidrec.serving.drift_figures import in_words
from sidrec.serving.generation import Generation, Generations
from sidrec.serving.limits import Limits
from sidrec.serving.list_log import ListLog
from sidrec.serving.metrics import Metrics
from sidrec.serving.requests import CatalogueChanged, EventsCall, ItemsCall, ListRequest, RecommendCall
from sidrec.serving.store import Added, Event, Removed, ServedList, Store
from sidrec.serving.versions import Version, current_folder, folder_of, versions

SECONDS_BETWEEN_LOOKS = 2.0  # at what commands have made of the bundle's catalogue
DRIFT_DAYS, WITHIN_HOURS = 7.0, 24.0  # of /drift, before the newest event, and after a list
NO_EVENTS = "this user has no events in the store"
NO_KNOWN_ITEM = "the catalogue has no item of this user's"


class Service:
    """folder: of the bundle. bundles: below which /admin/bundle may name others; None: nowhere. wait, most: as of `Batcher`. beside: of a
    bundle to compare with, which nothing changes."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        limits: Limits,
        wait: float = 0.005,
        most: int = 64,
        needs_keys: bool = False,
        bundles: Path | None = None,
        beside: Path | None = None,
    ) -> None:
        self.store, self.limits, self.needs_keys, self.bundles = store, limits, needs_keys, bundles
        self.metrics = Metrics()
        self.batcher = Batcher(wait, most, self.metrics)
        self.generations = Generations(self._loaded(folder))
        self.beside = None if beside is None else self._loaded(beside)
        self._changing, self._measuring = asyncio.Lock(), asyncio.Lock()
        first = secrets.token_hex(8)  # of this process alone
        self._request_ids = (f"{first}-{number}" for number in itertools.count())
        self._note(self.generations.current)

    def open(self) -> None:
        """Begin to log; to be called before the first request."""
        self.log = ListLog(self.store, self.metrics)

    def close(self) -> None:
        """Write what waits and let the threads end; to be called after the last answer."""
        self.batcher.close()
        self.log.close()
        self.store.close()

    # ---- lists

    async def recommend(self, call: RecommendCall, generation: Generation) -> dict[str, Any]:
        """As `Recommended`. Raises InputError for what is above a limit and for a filter that does not fit."""
        self.limits.check_lists(call)
        began, index_of = time.monotonic(), generation.bundle.index_of
        users = {request.user for request in call.requests if request.user is not None}
        of_users = await run_in_threadpool(self._histories, users) if users else {}
        histories = [of_users[each.user] if each.user is not None else each.history or [] for each in call.requests]
        jobs = [
            Job(generation, known_items(index_of, history), why_empty(request, history), wish_of(request))
            for request, history in zip(call.requests, histories, strict=True)
        ]
        replies = await asyncio.gather(*map(self.batcher.ask, jobs), return_exceptions=True)
        answers = [reply for reply in replies if isinstance(reply, Answer)]
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        lists = []
        for request, history, reply in zip(call.requests, histories, answers, strict=True):
            request_id = next(self._request_ids)
            self._log(request_id, request, history, reply, generation, began)
            reason = "; ".join(filter(None, (*unknown_ids(index_of, request), reply.reason))) or None
            of_list = {"request_id": request_id, "user": request.user, "reason": reason}
            lists.append(of_list | {"drawn": reply.propensities is not None, "items": reply.items})
        return {"model": generation.bundle.name, "catalogue_version": generation.version, "lists": lists}

    def _histories(self, users: set[str]) -> dict[str, list[str]]:
        return {user: self.store.history(user, self.limits.max_history) for user in users}

    def _log(
        self,
        request_id: str,
        request: ListRequest,
        history: list[str],
        reply: Answer,
        generation: Generation,
        began: float,
    ) -> None:
        if generation is self.beside:  # nobody was served it
            return
        known = [item for item in history if item in generation.bundle.index_of]
        items = [item["item_id"] for item in reply.items]
        served = ServedList(
            request_id,
            request.user,
            generation.policy,
            generation.version,
            request.k,
            known,
            not request.keep_seen,
            items,
            reply.propensities,
        )
        self.log.add(served, began)

    # ---- items, events and users

    def items(
        self, generation: Generation, query: str, limit: int, offset: int, ids: Sequence[str] | None = None
    ) -> tuple[int, pl.DataFrame]:
        """How many items there are whose title holds the query, or whose id it is, of these ids where some are given; and some of them,
        with every column and sid."""
        bundle = generation.bundle
        held = may_be_recommended(bundle, Question())
        if query:
            title = bundle.items["title"].str.to_lowercase().str.contains(query.lower(), literal=True)
            held &= (title | (bundle.items["item_id"] == query)).fill_null(False).to_numpy()
        if ids is not None:
            held &= bundle.items["item_id"].is_in(list(ids)).to_numpy()
        rows = np.flatnonzero(held)
        part = rows[offset : offset + limit]
        return len(rows), bundle.items[part].with_columns(sid=bundle.shelf["sid"][part])

    def add_events(self, call: EventsCall) -> Added:
        """Returns when the events are on the disk."""
        self.limits.check_rows(call)
        return self.store.add_events([Event(**event.model_dump()) for event in call.events])

    async def drift(self) -> list[str]:
        """How far the events of the last DRIFT_DAYS are from what the bundle was trained on, in the sentences of `sidrec drift`; one at a
        time, for it reads them all."""
        async with self._measuring:
            bundle = self.generations.current.bundle  # not leased: no change waits for it
            figures = await run_in_threadpool(drift_of, self.store, bundle, None, DRIFT_DAYS, WITHIN_HOURS, seed=0)
        return ["the store has no events"] if figures is None else in_words(figures)

    def delete_user(self, user: str) -> Removed:
        return self.log.delete_user(user)

    # ---- another bundle

    async def switch_bundle(self, name: str) -> Generation:
        """Load another bundle beside this one and serve it. Raises InputError for one outside of --bundles, and for a damaged one."""
        folder = self._below_bundles(name)
        if self._changing.locked():
            raise InputError("another change of what is served is under way; try again when it has ended.")
        async with self._changing:
            generation = await run_in_threadpool(self._loaded, folder)
            await self._serve(generation)
        gc.collect()
        return generation

    async def add_items(self, call: ItemsCall) -> CatalogueChanged:
        """Returns when every answer has the new catalogue. Raises InputError as `items_of_records` and `add_table` do."""
        self.limits.check_rows(call)
        return await self._change(
            lambda folder: add_table(folder, lambda source: items_of_records(call.items, source), call.new_sids)[1]
        )

    async def remove_item(self, item_id: str) -> CatalogueChanged:
        """Returns when no answer has the item any more. Raises InputError as `remove_ids` does."""
        return await self._change(lambda folder: remove_ids(folder, [item_id]))

    async def _change(self, change: Callable[[Path], Version | None]) -> CatalogueChanged:
        """Write another version of the catalogue, on the current one, and serve it. change: what writes it, None where nothing changes."""
        async with self._changing:
            before = await self._caught_up()
            version = await run_in_threadpool(change, before.folder)
            if version is None:
                n_items = before.bundle.trie.n_items
                return CatalogueChanged(catalogue_version=before.version, added=0, changed=0, removed=0, items=n_items)
            await self._serve(await run_in_threadpool(_at_version, before, version.number))
        return CatalogueChanged(
            catalogue_version=version.number,
            added=version.added,
            changed=version.changed,
            removed=version.removed,
            items=version.items,
        )

    async def follow(self) -> None:
        """Serve what `sidrec add-items` and the like make of the bundle's catalogue, until this is cancelled."""
        said = ""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            try:
                if await run_in_threadpool(_has_moved, self.generations.current):
                    async with self._changing:
                        await self._caught_up()
                said = ""
            except (InputError, OSError) as error:
                if str(error) != said:  # each once
                    said = str(error)
                    sys.stderr.write(f"the catalogue stays as it is served: {said}\n")

    async def _caught_up(self) -> Generation:
        """What is served, once it is the current version of the bundle's catalogue; to be awaited while `_changing` is held.

        Raises InputError where another bundle lies in the folder now, or the version is not as it was written.
        """
        before = self.generations.current
        generation = await run_in_threadpool(_current_of, before)
        if generation is not before:
            await self._serve(generation)
        return generation

    async def _serve(self, generation: Generation) -> None:
        await self.generations.switch(generation)
        await run_in_threadpool(self._note, generation)

    def _below_bundles(self, name: str) -> Path:
        if self.bundles is None:
            raise InputError("the service was started without --bundles, so it serves no other bundle.")
        root = self.bundles.resolve()
        try:
            folder = (root / name).resolve()
            is_below = root in folder.parents and folder.is_dir()
        except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
            is_below = False
        if not is_below:
            raise InputError(f"there is no bundle {name[:100]!r} below the folder of --bundles.")
        return folder

    def _loaded(self, folder: Path) -> Generation:
        generation = Generation(Bundle.load(folder), folder, versions(folder)[1], content_of(folder))
        warm_up(generation)
        return generation

    def _note(self, generation: Generation) -> None:
        self.metrics.serves(generation.bundle.name, generation.version)
        try:
            self.store.see_catalogue(generation.version, f"{generation.bundle.name} of {generation.folder.name}")
        except SQLAlchemyError as error:  # what is served does not depend on it
            sys.stderr.write(f"the store did not take the catalogue's version: {type(error).__name__}\n")


def _current_number(served: Generation) -> int:
    """Of the version of the catalogue that is current in the folder. Raises InputError where another bundle lies there now."""
    if content_of(served.folder) != served.content:
        raise InputError(
            f"{served.folder} holds another bundle than the one that is served; call POST /admin/bundle, or start again."
        )
    return versions(served.folder)[1]


def _has_moved(served: Generation) -> bool:
    """Whether another version of the catalogue is current in the folder."""
    return _current_number(served) != served.version


def _current_of(before: Generation) -> Generation:
    """The generation with the current version of its catalogue; itself where that is its own."""
    number = _current_number(before)
    if number == before.version:
        return before
    current_folder(before.folder)  # raises where it is damaged
    return _at_version(before, number)


def _at_version(before: Generation, number: int) -> Generation:
    bundle = before.bundle.at_version(folder_of(before.folder, number))
    generation = Generation(bundle, before.folder, number, before.content)
    warm_up(generation)
    return generation


def known_items(index_of: dict[str, int], history: Sequence[str]) -> np.ndarray:
    """int64: the items that the catalogue has or had."""
    return np.array([index_of[name] for name in history if name in index_of], dtype=np.int64)


def why_empty(request: ListRequest, history: Sequence[str]) -> str | None:
    """What is said if no item of the history is known."""
    if request.user is not None:
        return NO_KNOWN_ITEM if history else NO_EVENTS
    return None


def unknown_ids(index_of: dict[str, int], request: ListRequest) -> list[str]:
    """Sentences about ids of the request that the catalogue has not."""
    said = []
    for field in ("history", "exclude"):
        unknown = [name for name in getattr(request, field) or [] if name not in index_of]
        if unknown:
            said.append(f"{len(unknown):,} of {field} not in the catalogue and left out, such as {unknown[0][:60]!r}")
    return said


def wish_of(request: ListRequest) -> Wish:
    conditions = [condition.model_dump() for condition in request.where]
    return Wish(
        request.k,
        request.keep_seen,
        request.diversity,
        json.dumps(conditions),
        frozenset(request.exclude),
        request.temperature,
    )

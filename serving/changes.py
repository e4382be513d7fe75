"""What a file of items, or a list of ids, makes of a catalogue: new items with semantic IDs of their own, changed ones, removed ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from sidrec.data.item_file import source_columns, with_text_of
from sidrec.pipeline.errors import InputError
from sidrec.serving.about import read_about
from sidrec.serving.versions import Catalogue, Version, changing, write_version
from sidrec.tokenizer.config import COMPUTED_SOURCES
from sidrec.tokenizer.embeddings.encoders import Encoder, load_encoders
from sidrec.tokenizer.embeddings.unit_rows import EMPTY_NORM
from sidrec.tokenizer.new_items import read_new


class AbsentItemError(InputError):
    """An item is to be removed that the catalogue never had, or has no more."""


@dataclass(frozen=True)
class Sources:
    """What vectors of items are made of. names: as `--sources` of the tokenizer had them, in order. encoders: of those that this project
    computes. files: vectors of the user's own for the others, float [rows of the file of items, D_s] each."""

    names: list[str]
    encoders: dict[str, Encoder]
    files: list[np.ndarray]

    @classmethod
    def read(cls, names: list[str], encoders: dict[str, Encoder], paths: list[Path], n_rows: int) -> Sources:
        """Raises InputError where the files are not as many as there are sources of the user's own, or have another number of rows."""
        others = [name for name in names if name not in encoders]
        if len(paths) != len(others):
            raise InputError(
                f"--vectors names {len(paths)} files, but {len(others)} of the sources {' '.join(names)} are files of your own; give one "
                "for each of these, with a row for every row of the items' file."
            )
        files = read_new(paths)
        for path, vectors in zip(paths, files, strict=True):
            if len(vectors) != n_rows:
                raise InputError(f"{path} has {len(vectors)} rows, but the file of items has {n_rows}; make it again.")
        return cls(names, encoders, files)

    def blocks(self, texts: list[str], rows: np.ndarray) -> list[np.ndarray]:
        """The vectors of each source, [n, D_s]. texts: of n items; rows: int [n], where they stand in the file of items."""
        files = iter(self.files)
        return [
            self.encoders[name].encode(texts) if name in self.encoders else next(files)[rows] for name in self.names
        ]

    def n_unread(self, blocks: list[np.ndarray]) -> int:
        """How many items have no word that the text's encoder knows."""
        texts = [block for name, block in zip(self.names, blocks, strict=True) if name == "text"]
        return sum(int((np.linalg.norm(block, axis=1) < 2 * EMPTY_NORM).sum()) for block in texts)


@dataclass(frozen=True)
class Change:
    """A catalogue after a file of items, and the number of items that were added, changed, left as they were; untitled: that have their id
    for a title; coded: that got a semantic ID; moved: of these, other codes than their nearest; unread: see `Sources.n_unread`."""

    catalogue: Catalogue
    added: int
    changed: int
    unchanged: int
    untitled: int
    coded: int = 0
    moved: int = 0
    unread: int = 0


def add_table(
    bundle: Path, read: Callable[[pl.DataFrame], pl.DataFrame], new_sids: bool, vectors: Sequence[Path] = ()
) -> tuple[Change, Version | None]:
    """Make the version of a bundle's catalogue that has a table's items; none where they change nothing.

    read: the table, of the catalogue as `source_columns` gives it; it raises InputError where they do not fit. vectors: files for sources
    of the user's own. Raises InputError, too, where the bundle does not say how its items are coded, or another process changes it.
    """
    about = read_about(bundle)
    columns, names = about["text_columns"], about["sources"]
    if columns is None or names is None:
        raise InputError(
            f"{bundle} does not say how its items' texts and vectors are made, so new ones cannot be coded; prepare the data, make "
            "the semantic IDs with `sidrec tokenize`, train, and bundle again."
        )
    with changing(bundle) as before:
        table = read(source_columns(before.items))
        encoders = load_encoders(bundle) if {*names} & {*COMPUTED_SOURCES} else {}
        change = with_file(before, table, columns, Sources.read(names, encoders, list(vectors), len(table)), new_sids)
        if not change.added + change.changed:
            return change, None
        return change, write_version(bundle, change.catalogue, added=change.added, changed=change.changed)


def remove_ids(bundle: Path, ids: Sequence[str]) -> Version:
    """Make the version of a bundle's catalogue without the items of these ids. Raises InputError as `without_items` does."""
    read_about(bundle)
    names = list(dict.fromkeys(ids))
    with changing(bundle) as before:
        return write_version(bundle, without_items(before, names), removed=len(names))


def with_file(before: Catalogue, table: pl.DataFrame, columns: list[str], sources: Sources, new_sids: bool) -> Change:
    """The catalogue with the items of a file: those with an unknown id are added, one that was removed comes back, any other is changed in
    the columns that the file has.

    table: as `read_item_file` gives it. columns: what texts are made of. A new item gets a semantic ID that no item has or had; one that
    is known keeps its own, unless new_sids and its text is another. Raises InputError where too few semantic IDs are free.
    """
    rows = np.array([before.index_of.get(name, -1) for name in table["item_id"]])  # by row of the file
    is_new = rows < 0
    items = _joined(before.items, table, is_new, columns)
    rows[is_new] = len(before.items) + np.arange(is_new.sum())
    known = rows[~is_new]
    was_held, differs, of_text = np.zeros((3, len(rows)), dtype=bool)
    was_held[~is_new] = before.is_held[known]
    old, new = before.items[known], items[known]
    differs[~is_new] = np.any([old[name].ne_missing(new[name]).to_numpy() for name in items.columns], axis=0)
    of_text[~is_new] = old["text"].ne_missing(new["text"]).to_numpy()
    is_held = np.ones(len(items), dtype=bool)
    is_held[: len(before.items)] = before.is_held
    is_held[rows] = True
    change = Change(
        Catalogue(items, before.sids, is_held),
        added=int((~was_held).sum()),
        changed=int((was_held & differs).sum()),
        unchanged=int((was_held & ~differs).sum()),
        untitled=int((items["title"][rows] == items["item_id"][rows]).sum()),
    )
    coded = np.flatnonzero(is_new | (of_text & new_sids))
    return change if not len(coded) else _coded(change, rows[coded], coded, sources)


def _joined(items: pl.DataFrame, table: pl.DataFrame, is_new: np.ndarray, columns: list[str]) -> pl.DataFrame:
    """The items with the file's cells in place of theirs, the new ones behind them; an empty title is that of before, or the id."""
    if is_new.any() and "title" not in table.columns:
        name = table["item_id"][int(is_new.argmax())]
        raise InputError(f"item {name!r} is new, and the file has no column 'title'; add it.")
    source, mask = source_columns(items), pl.Series(is_new)
    changed = table.filter(~mask)
    if len(changed) and changed.width > 1:
        source = source.update(changed, on="item_id", how="left", include_nulls=True)
    titles = pl.concat([items["title"], table["item_id"].filter(mask)])
    joined = pl.concat([source, table.filter(mask)], how="diagonal")
    return with_text_of(joined.with_columns(title=pl.col("title").fill_null(titles)), columns)


def _coded(change: Change, items: np.ndarray, rows: np.ndarray, sources: Sources) -> Change:
    """The change with semantic IDs for `items`, int [n], which stand in `rows` of the file."""
    catalogue, sids = change.catalogue, change.catalogue.sids
    assert sids.quantizer is not None, "the sources were read, so vectors can be coded"
    blocks = sources.blocks(catalogue.items["text"][items].to_list(), rows)
    others = np.delete(np.arange(sids.n_items), items[items < sids.n_items])
    occupied = replace(sids, codes=sids.codes[others], codes_raw=sids.codes_raw[others])
    new = occupied.encode(sids.quantizer.item_vectors(blocks))
    codes, raw = (_with_rows(old, len(catalogue.items)) for old in (sids.codes, sids.codes_raw))
    codes[items], raw[items] = new.codes, 0
    raw[items, : new.nearest.shape[1]] = new.nearest
    coded = replace(catalogue, sids=replace(sids, codes=codes, codes_raw=raw))
    return replace(
        change, catalogue=coded, coded=len(items), moved=int(new.moved.sum()), unread=sources.n_unread(blocks)
    )


def _with_rows(codes: np.ndarray, n_items: int) -> np.ndarray:
    """int32 [n_items, L]: a copy with rows of zeros behind."""
    return np.concatenate([codes, np.zeros((n_items - len(codes), codes.shape[1]), dtype=np.int32)])


def without_items(before: Catalogue, ids: list[str]) -> Catalogue:
    """The catalogue without the items of these ids; their semantic IDs stay theirs, so that histories still mean them.

    Raises AbsentItemError for an id that is unknown or removed already, and InputError where no item would be left.
    """
    for name in ids:
        row = before.index_of.get(name)
        if row is None:
            near = difflib.get_close_matches(name, before.items["item_id"].to_list(), n=3)
            hint = f"near it are {', '.join(near)}" if near else f"ids are such as {before.items['item_id'][0]!r}"
            raise AbsentItemError(f"the catalogue has no item {name!r}; {hint}.")
        if not before.is_held[row]:
            raise AbsentItemError(f"item {name!r} has been removed already; leave it out.")
    is_held = before.is_held.copy()
    is_held[[before.index_of[name] for name in ids]] = False
    if not is_held.any():
        raise InputError(f"all {before.is_held.sum()} items would be removed; leave at least one in the catalogue.")
    return replace(before, is_held=is_held)

"""`sidrec serve` under load: how many requests it answers, how fast, how right, and what survives.

python -m benchmarks.serving
python -m benchmarks.serving --seconds 15 --run_dir outputs/ml-1m

Without --run_dir: a bundle of random weights and users with random events in the size of MovieLens-1M. --clients threads of this process
ask for the lists of users, each one after the other, for --seconds with requests gathered and for --seconds with each alone (--batch_ms 0);
every answer is compared with what `sidrec.serving.answer` gives offline. The server's processor seconds are its own, of all its threads;
where this process shares the processor with it, requests a second are those of both. Then come --hostile requests that no honest client
sends, and --kills times kill -9 while events are sent: an event that was acknowledged must be in the store. The last line is one JSON
object.
"""

from __future__ import annotations

import http.client
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from benchmarks.harness import announce, check_at_least, plain_console, print_figures
from benchmarks.hostile_requests import hostile_requests
from benchmarks.random_bundle import random_events, write_random_bundle
from benchmarks.served_child import ServedChild
from sidrec.data.dataset import Dataset
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.serving.answer import Question, answers
from sidrec.serving.bundle import Bundle
from sidrec.serving.history import asked_of_histories
from sidrec.serving.store import Event, Store

SAME_SCORE = 1e-4  # items whose log probabilities differ by less may change places
EVENTS_AT_ONCE = 20_000
KILL_AFTER = (0.2, 1.0)  # seconds of sending events


@dataclass
class ServingConfig:
    """Load, faults and kills of a service on this machine."""

    run_dir: Path | None = field(default=None, metadata={"help": "A run with a bundle; left out: a random one."})
    seconds: float = field(default=60.0, metadata={"help": "Seconds of load, with and without gathering."})
    clients: int = field(default=32, metadata={"help": "Clients that ask at one time."})
    batch_ms: float = field(default=5.0, metadata={"help": "Milliseconds that a request waits for others."})
    k: int = field(default=10, metadata={"help": "Items of a list."})
    n_items: int = field(default=3416, metadata={"help": "Items of the random catalogue."})
    n_users: int = field(default=500, metadata={"help": "Users of the random events."})
    mean_items: int = field(default=165, metadata={"help": "Mean events of a user: 165 in MovieLens-1M, 9 in Beauty."})
    layers: int = field(default=2, metadata={"help": "Layers of the random model: 2 for MovieLens-1M, 1 for Beauty."})
    hostile: int = field(default=5000, metadata={"help": "Hostile requests."})
    kills: int = field(default=5, metadata={"help": "Times that the server is killed."})
    seed: int = field(default=0, metadata={"help": "Seed of bundle, events, clients and hostile requests."})

    def __post_init__(self) -> None:
        check_at_least(1, clients=self.clients, k=self.k, n_users=self.n_users, layers=self.layers)
        check_at_least(100, n_items=self.n_items)
        check_at_least(4, mean_items=self.mean_items)


class Load(NamedTuple):
    """Of one phase: the milliseconds of every answered request, answers that were none, answers that were wrong, processor seconds of the
    server, and seconds."""

    milliseconds: list[float]
    errors: int
    wrong: int
    cpu_seconds: float
    seconds: float


def main(arguments: list[str] | None = None) -> None:
    config, console = parse_config(ServingConfig, arguments), plain_console()
    announce(console, "serving", arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, histories = asked_of(config, folder)
        fill(folder / "store.db", histories)
        offline = offline_lists(bundle, histories, config.k)
        figures = {"users": len(histories), "items": len(Bundle.load(bundle).items), "clients": config.clients}
        loads = {}
        for kind, wait in (("gathered", config.batch_ms), ("alone", 0.0)):
            child = ServedChild(bundle, str(folder / "store.db"), "--batch_ms", str(wait))
            loads[kind] = load(child, offline, config)
            console.print(f"{kind}: {summary(loads[kind])}")
            if kind == "gathered":
                figures["hostile_500s"] = hostile_faults(child, config)
            code, _ = child.stop()
            assert code == 0, f"the server ended with {code}"
        figures |= measured(loads["gathered"], loads["alone"])
        figures["kills"] = config.kills
        figures["lost_events"], figures["acknowledged_events"] = lost_events(bundle, folder / "kills.db", config)
    print_figures(figures)


def asked_of(config: ServingConfig, folder: Path) -> tuple[Path, dict[str, list[str]]]:
    """The bundle's folder, and the item ids of every user."""
    if config.run_dir is None:
        bundle = write_random_bundle(folder / "bundle", config.n_items, config.layers, config.seed)
        return bundle, random_events(config.n_users, config.mean_items, config.n_items, config.seed)
    dataset = Dataset.load(config.run_dir)
    names = dataset.items.select("item_id", "item_index")
    log = dataset.interactions.join(names, on="item_index", how="left", maintain_order="left")
    by_user = log.group_by("user_id", maintain_order=True).agg("item_id").head(config.n_users)
    return config.run_dir / "bundle", dict(by_user.with_columns(pl.col("user_id").cast(pl.String)).iter_rows())


def fill(store: Path, histories: dict[str, list[str]]) -> None:
    """A store with an event for every item of every history."""
    events = [
        Event(f"{user} {place}", user, item, place)
        for user, history in histories.items()
        for place, item in enumerate(history)
    ]
    with closing(Store.open(str(store))) as opened:
        for first in range(0, len(events), EVENTS_AT_ONCE):
            opened.add_events(events[first : first + EVENTS_AT_ONCE])


def offline_lists(bundle: Path, histories: dict[str, list[str]], k: int) -> dict[str, list[tuple[str, float]]]:
    """Of every user the items and their scores."""
    opened = Bundle.load(bundle)
    indices = [np.array([opened.index_of[item] for item in history]) for history in histories.values()]
    rows = pl.concat(answers(opened, asked_of_histories(indices, list(histories)), Question(k)))
    lists: dict[str, list[tuple[str, float]]] = {}
    for user, item, score in rows.select("user_id", "item_id", "score").iter_rows():
        lists.setdefault(user, []).append((item, score))
    return lists


def is_same(served: list[dict[str, Any]], wanted: list[tuple[str, float]]) -> bool:
    """The same items in the same places; where the scores are as good as equal, in others."""
    if len(served) != len(wanted):
        return False
    return all(
        abs(each["score"] - score) < SAME_SCORE and (each["item_id"] == item or each["score"] != score)
        for each, (item, score) in zip(served, wanted, strict=True)
    )


def load(child: ServedChild, offline: dict[str, list[tuple[str, float]]], config: ServingConfig) -> Load:
    users, milliseconds, faults, wrong = list(offline), [], [], []

    def ask(number: int, until: float) -> None:
        draw, connection = random.Random(config.seed * 1000 + number), child.connect()
        while time.perf_counter() < until:
            user, began = draw.choice(users), time.perf_counter()
            try:
                status, reply = connection.post("/recommend", {"requests": [{"user": user, "k": config.k}]})
            except (OSError, http.client.HTTPException) as error:
                faults.append(repr(error))
                continue
            if status != 200:
                faults.append(str(status))
                continue
            milliseconds.append(1000 * (time.perf_counter() - began))
            if not is_same(reply["lists"][0]["items"], offline[user]):
                wrong.append(user)

    ask(-1, time.perf_counter() + 1)  # what is made once
    for measured in (milliseconds, faults, wrong):
        measured.clear()
    cpu, began = child.cpu_seconds, time.perf_counter()
    in_threads(lambda number: ask(number, began + config.seconds), range(config.clients))
    return Load(milliseconds, len(faults), len(wrong), child.cpu_seconds - cpu, time.perf_counter() - began)


def in_threads(work: Callable[[int], None], numbers: Iterable[int]) -> None:
    with ThreadPoolExecutor(len(list(numbers))) as threads:
        list(threads.map(work, numbers))


def summary(of: Load) -> str:
    answered, cpu = len(of.milliseconds), of.cpu_seconds
    return (
        f"{answered:,} answers in {of.seconds:.1f} s, {cpu:.1f} processor seconds, {of.errors} errors, {of.wrong} wrong"
    )


def measured(gathered: Load, alone: Load) -> dict[str, Any]:
    p50, p99 = np.percentile(gathered.milliseconds, (50, 99))
    per_cpu_second = [len(each.milliseconds) / each.cpu_seconds for each in (gathered, alone)]
    return {
        "requests_per_s": round(len(gathered.milliseconds) / gathered.seconds, 1),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
        "errors": gathered.errors + alone.errors,
        "wrong": gathered.wrong + alone.wrong,
        "requests_per_s_alone": round(len(alone.milliseconds) / alone.seconds, 1),
        "batch_gain": round(per_cpu_second[0] / per_cpu_second[1], 2),
        "server_cpu_ms_per_request": round(1000 / per_cpu_second[0], 2),
        "server_cpu_ms_per_request_alone": round(1000 / per_cpu_second[1], 2),
    }


def hostile_faults(child: ServedChild, config: ServingConfig) -> int:
    """How many hostile requests were answered with 500 or more, or not at all."""
    connection, faults = child.connect(), 0
    for request in hostile_requests(config.hostile, config.seed):
        try:
            status, _ = connection.send(request.method, request.path, request.body, request.headers)
        except (
            OSError,
            http.client.HTTPException,
        ):  # uvicorn closes after what is no HTTP, and after a body that it did not read
            try:
                status, _ = child.connect().send("GET", "/healthz", None, {})
            except (OSError, http.client.HTTPException):
                status = 599
        faults += status >= 500
    return faults


def lost_events(bundle: Path, store: Path, config: ServingConfig) -> tuple[int, int]:
    """Acknowledged events that are not in the store after `kill -9`, and how many were acknowledged."""
    draw, acknowledged = random.Random(config.seed), []
    for kill in range(config.kills):
        child = ServedChild(bundle, str(store))
        ended = threading.Event()

        def send(number: int, kill: int = kill, child: ServedChild = child, ended: threading.Event = ended) -> None:
            connection, sent = child.connect(), 0
            while not ended.is_set():
                ids = [f"{kill} {number} {sent + place}" for place in range(3)]
                events = [{"event_id": name, "user_id": "ann", "item_id": "item 1", "timestamp": 1} for name in ids]
                try:
                    status, _ = connection.post("/events", {"events": events})
                except (OSError, http.client.HTTPException):
                    return
                if status == 200:
                    acknowledged.extend(ids)
                sent += 3

        killer = threading.Timer(draw.uniform(*KILL_AFTER), lambda child=child: child.process.kill())
        killer.start()
        in_threads(send, range(4))
        ended.set()
        killer.join()
        child.kill()
    if not config.kills:
        return 0, 0
    with closing(Store.open(str(store), must_exist=True)) as opened, opened.engine.connect() as connection:
        stored = set(connection.exec_driver_sql("SELECT event_id FROM events").scalars())
    return len(set(acknowledged) - stored), len(acknowledged)


if __name__ == "__main__":
    run_as_command(main)

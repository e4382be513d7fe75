"""The service's answers: the command's rows, alone and together; events, items, users, keys, another bundle."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import shutil
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from run_dirs import N_ITEMS, exit_code, finished_rq_run
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from sidrec.data.dataset import Dataset
from sidrec.decoding.plackett_luce import slot_probabilities
from sidrec.pipeline.hashes import FileHashes
from sidrec.pipeline.stage import write_manifest
from sidrec.serving.batcher import Answer, Batcher, Job, Wish, answer_together
from sidrec.serving.limits import Limits
from sidrec.serving.metrics import Metrics
from sidrec.serving.routes import create_app
from sidrec.serving.service import Service
from sidrec.serving.store import Event, Store

HISTORIES = [["i0", "i1", "i2"], ["i59"], [], ["i3", "i3", "i14"], [f"i{item}" for item in range(57)]]
URL = "http://127.0.0.1"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a bundle."""
    run = tmp_path_factory.mktemp("service") / "run"
    shutil.copytree(finished_rq_run(tmp_path_factory), run)
    assert exit_code("serving/make_bundle.py", "--run_dir", run) == 0
    return run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store.db"))


@pytest.fixture
def service(run_dir: Path, store: Store) -> Service:
    return Service(run_dir / "bundle", store, Limits())


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), URL) as client:
        yield client


def lists_of(client: TestClient, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    response = client.post("/recommend", json={"requests": requests})
    assert response.status_code == 200, response.text
    return response.json()["lists"]


def same_lists(served: dict[str, Any], rows: pl.DataFrame) -> None:
    """As `sidrec recommend --output` has them, but for the last bits of the scores."""
    wanted = rows.filter(pl.col("item_id").is_not_null()).drop("user_id", "reason")
    assert [{**item, "score": None} for item in served["items"]] == wanted.with_columns(score=pl.lit(None)).to_dicts()
    scores = [np.nan if item["score"] is None else item["score"] for item in served["items"]]
    np.testing.assert_allclose(scores, wanted["score"].fill_null(float("nan")).to_list(), rtol=1e-5)
    assert served["reason"] == (rows["reason"][0] if len(rows) else None)


def commands_rows(run_dir: Path, folder: Path, *flags: object) -> pl.DataFrame:
    """What `sidrec recommend` gives."""
    output = folder / "rows.parquet"
    assert exit_code("serving/recommend.py", "--bundle", run_dir / "bundle", "--output", output, *flags) == 0
    return pl.read_parquet(output, glob=False)


def test_a_list_is_the_commands(run_dir: Path, client: TestClient, tmp_path: Path) -> None:
    asked: list[tuple[dict[str, Any], list[object]]] = [
        ({"history": ["i0", "i1", "i2"]}, ["--items", "i0,i1,i2"]),
        ({"history": []}, ["--items", ""]),
        ({"history": ["i4", "i5"], "k": 60, "keep_seen": True}, ["--items", "i4,i5", "--k", 60, "--keep_seen", "true"]),
        ({"history": ["i9"], "k": 7, "diversity": 2}, ["--items", "i9", "--k", 7, "--diversity", 2]),
        (
            {"history": ["i9"], "where": [{"column": "title", "op": "contains", "value": "blue"}]},
            ["--items", "i9", "--where", "title like '%blue%'"],
        ),
        (
            {"history": ["i9"], "exclude": ["i10", "i11"], "k": 5},
            ["--items", "i9", "--k", 5, "--where", "item_id not in ('i10', 'i11')"],
        ),
    ]
    together = lists_of(client, *[request for request, _ in asked])
    for (request, flags), of_many in zip(asked, together, strict=True):
        rows = commands_rows(run_dir, tmp_path, *flags)
        same_lists(of_many, rows)
        same_lists(lists_of(client, request)[0], rows)
    assert len({each["request_id"] for each in together}) == len(together)


def test_a_user_gets_the_commands_list_for_the_events_of_the_store(
    run_dir: Path, client: TestClient, store: Store, tmp_path: Path
) -> None:
    log = Dataset.load(run_dir).interactions.select(
        "user_id", item_id="i" + pl.col("item_index").cast(pl.String), timestamp="timestamp"
    )
    strange = pl.DataFrame({"user_id": ["z", "u3"], "item_id": ["gone", "gone"], "timestamp": [1, 1]}, log.schema)
    log = pl.concat([log, strange])
    log.write_csv(tmp_path / "log.csv")
    store.add_events([Event(str(n), *row) for n, row in enumerate(log.iter_rows())])
    users = ["u3", "z", "u0", "nobody", "u7"]
    (tmp_path / "users.txt").write_text("\n".join(users), encoding="utf-8")
    rows = commands_rows(run_dir, tmp_path, "--log", tmp_path / "log.csv", "--users", tmp_path / "users.txt")
    for user, served in zip(users, lists_of(client, *[{"user": user} for user in users]), strict=True):
        assert served["user"] == user
        if user == "nobody":
            assert served["reason"] == "this user has no events in the store, so what was most taken in training"
            served["reason"] = "this user is not in the log, so what was most taken in training"
        same_lists(served, rows.filter(pl.col("user_id") == user))


def test_concurrent_requests_of_all_kinds_get_what_they_get_alone(client: TestClient) -> None:
    filters: list[list[dict[str, Any]]] = [[], [{"column": "title", "op": "contains", "value": "red"}]]
    requests = [
        {"history": history, "k": k, "where": where, "keep_seen": keep}
        for history in HISTORIES
        for k in (1, 3, 10)
        for where in filters
        for keep in (False, True)
    ]
    alone = [lists_of(client, request)[0] for request in requests]
    order = np.random.default_rng(0).permutation(len(requests))
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(lambda number: lists_of(client, requests[number])[0], order))
    for number, served in zip(order, together, strict=True):
        assert [item["item_id"] for item in served["items"]] == [item["item_id"] for item in alone[number]["items"]]
        assert served["reason"] == alone[number]["reason"]
    sizes = client.get("/metrics").text
    assert float(sizes.split("\nsidrec_batch_size_count ")[1].split()[0]) < 2 * len(requests)  # some were gathered


def test_unknown_ids_are_said_of_the_list_that_has_them(client: TestClient) -> None:
    known, unknown, none = lists_of(
        client, {"history": ["i1"]}, {"history": ["i1", "nothing", "else"], "exclude": ["x"]}, {"history": ["nothing"]}
    )
    assert known["reason"] is None
    assert unknown["reason"].startswith(
        "2 of history not in the catalogue and left out, such as 'nothing'; 1 of exclude"
    )
    assert [item["item_id"] for item in unknown["items"]] == [item["item_id"] for item in known["items"]]
    assert "so what was most taken in training" in none["reason"]
    assert len(none["items"]) == 10


def test_waiting_requests_become_one_batch() -> None:
    """While the model works on the first, twenty more arrive; they are the second batch, and with a wait of 0 nothing is gathered."""
    for wait, wanted in ((0.001, [1, 8, 8, 4]), (0.0, [1] * 21)):
        gate, sizes = threading.Event(), []

        def work(jobs: Any, gate: threading.Event = gate, sizes: list[int] = sizes) -> list[Answer]:
            assert threading.current_thread().name.startswith("model")
            gate.wait(10)
            sizes.append(len(jobs))
            return [Answer(job.why_empty, []) for job in jobs]

        async def ask(wait: float = wait, gate: threading.Event = gate, work: Any = work) -> list[str | None]:
            batcher = Batcher(wait, 8, Metrics(), work)
            wish = Wish(1, False, None, "[]", frozenset())
            jobs = [Job(None, np.zeros(0, np.int64), str(n), wish) for n in range(21)]  # type: ignore[arg-type]
            first = batcher.ask(jobs[0])
            await asyncio.sleep(0.05)
            rest = [batcher.ask(job) for job in jobs[1:]]
            await asyncio.sleep(0.05)
            assert not first.done()
            gate.set()
            replies = [await future for future in (first, *rest)]
            batcher.close()
            return [reply.reason for reply in replies]

        assert asyncio.run(ask()) == [str(n) for n in range(21)]
        assert sizes == wanted


def test_a_fault_is_of_its_request_alone(service: Service) -> None:
    generation = service.generations.current
    wishes = [Wish(2, False, None, json.dumps(where), frozenset()) for where in ([], [{"column": "no"}])]
    jobs = [Job(generation, np.array([1]), None, wish) for wish in (*wishes, wishes[0])]
    first, fault, last = answer_together(jobs)
    assert isinstance(first, Answer)
    assert isinstance(last, Answer)
    assert "exactly the keys" in str(fault)
    service.batcher.close()


def test_events_are_stored_once_before_the_answer(client: TestClient, store: Store) -> None:
    body = {
        "events": [
            {
                "event_id": f"e{n}",
                "user_id": "ann/lee",
                "item_id": f"i{n}",
                "timestamp": n,
                "value": 4,
                "extra": {"a": [1]},
            }
            for n in range(3)
        ]
    }
    assert client.post("/events", json=body).json() == {"accepted": 3, "duplicates": 0}
    assert store.history("ann/lee") == ["i0", "i1", "i2"]
    body["events"].append(body["events"][0] | {"event_id": "e9"})
    assert client.post("/events", json=body).json() == {"accepted": 1, "duplicates": 3}
    assert len(lists_of(client, {"user": "ann/lee"})[0]["items"]) == 10
    answer = client.delete("/users/ann%2Flee").json()
    assert answer["events"] == 4
    assert "trained on these events" in answer["note"]
    assert store.history("ann/lee") == []


def test_served_lists_are_in_the_store_after_the_end(run_dir: Path, store: Store, tmp_path: Path) -> None:
    service = Service(run_dir / "bundle", store, Limits())
    with TestClient(create_app(service), URL) as client:
        for _ in range(5):
            lists_of(client, {"user": "ann", "k": 3}, {"history": ["i1", "gone"], "k": 4, "keep_seen": True})
    again = Store.open(str(tmp_path / "store.db"))
    assert again.counts().lists == 10
    with again.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT user_id, policy, catalogue_version, k, history, exclude_seen FROM served_lists"
        ).all()
        items = connection.exec_driver_sql("SELECT count(*), count(propensity) FROM served_items").one()
    policy = service.generations.current.policy
    assert {tuple(row) for row in rows} == {("ann", policy, 1, 3, "[]", 1), (None, policy, 1, 4, '["i1"]', 0)}
    assert tuple(items) == (35, 0)
    again.close()


def test_a_drawn_lists_probabilities_are_stored_and_are_the_models(run_dir: Path, store: Store, tmp_path: Path) -> None:
    service = Service(run_dir / "bundle", store, Limits())
    store.add_events([Event("1", "ann", "i1", 5), Event("2", "ann", "i4", 6)])
    with TestClient(create_app(service), URL) as client:
        drawn = lists_of(client, *[{"user": "ann", "k": 4, "temperature": 2} for _ in range(6)])
        unasked, unknown = lists_of(client, {"user": "ann", "k": 4}, {"user": "bob", "k": 4, "temperature": 2})
        both = {"user": "ann", "temperature": 1, "diversity": 2}
        assert client.post("/recommend", json={"requests": [both]}).status_code == 422
        assert client.post("/recommend", json={"requests": [{"user": "ann", "temperature": 0}]}).status_code == 422
    assert [each["drawn"] for each in (*drawn, unasked, unknown)] == [True] * 6 + [False] * 2
    assert len({tuple(item["item_id"] for item in each["items"]) for each in drawn}) > 1
    assert (
        exit_code("serving/export_lists.py", "--store", f"{tmp_path}/store.db", "--output", tmp_path / "lists.parquet")
        == 0
    )
    logged = pl.read_parquet(tmp_path / "lists.parquet", glob=False)
    assert sorted(logged["request_id"]) == sorted(each["request_id"] for each in drawn)

    bundle = service.generations.current.bundle
    scores = bundle.of_one_model.leaf_log_probs([np.array([1, 4])])[0]
    by_item = torch.full((len(bundle.items),), -torch.inf)
    by_item[bundle.trie.item_of_leaf[:]] = scores
    by_item[[1, 4]] = -torch.inf
    for items, propensities in logged.select("items", "propensities").iter_rows():
        chosen = torch.tensor([[bundle.index_of[item] for item in items]])
        np.testing.assert_allclose(propensities, slot_probabilities(by_item[None] / 2, chosen)[0], rtol=1e-4)


def test_drift_is_said_as_the_command_says_it(
    run_dir: Path, client: TestClient, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client.get("/drift").json() == {"days": 7.0, "sentences": ["the store has no events"]}
    store.add_events([Event(str(n), f"u{n % 5}", f"i{n % 50}", n) for n in range(200)])
    said = client.get("/drift").json()["sentences"]
    flags = ["--store", tmp_path / "store.db", "--bundle", run_dir / "bundle", "--days", "7"]
    capsys.readouterr()
    assert exit_code("serving/drift.py", *flags) == 0
    assert [line.strip().removeprefix("drift: ") for line in capsys.readouterr().out.splitlines()] == said
    assert said[-1].startswith("training")


def test_a_policy_is_named_by_what_its_bundle_holds(run_dir: Path, store: Store, tmp_path: Path) -> None:
    """Not by where it lies, nor by the kind of its model alone."""
    shutil.copytree(run_dir / "bundle", tmp_path / "bundles" / "copy")
    other = shutil.copytree(run_dir / "bundle", tmp_path / "bundles" / "other")
    np.save(other / "training_counts.npy", np.arange(N_ITEMS))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["outputs"]["training_counts.npy"] = FileHashes(other).described(other / "training_counts.npy")
    write_manifest(other / "manifest.json", manifest)
    service = Service(run_dir / "bundle", store, Limits(), bundles=tmp_path / "bundles")
    policies = [service.generations.current.policy]
    with TestClient(create_app(service), URL) as client:
        for name in ("copy", "other"):
            client.post("/admin/bundle", json={"bundle": name})
            policies.append(client.get("/healthz").json()["policy"])
    assert policies[0] == policies[1] != policies[2]
    assert all(re.fullmatch(r"sft-[0-9a-f]{12}", policy) for policy in policies)


def test_a_deleted_users_waiting_lists_are_not_stored(run_dir: Path, store: Store) -> None:
    service = Service(run_dir / "bundle", store, Limits())
    stored, go_on = store.log_lists, threading.Event()

    def slowly(self: Store, lists: Any) -> int:
        go_on.wait(10)
        return stored(lists)

    with pytest.MonkeyPatch.context() as patch, TestClient(create_app(service), URL) as client:
        patch.setattr(Store, "log_lists", slowly)
        for _ in range(4):
            lists_of(client, {"user": "ann"}, {"user": "bob"})
        with ThreadPoolExecutor(1) as threads:
            deletion = threads.submit(client.delete, "/users/ann")
            go_on.set()
            assert deletion.result().status_code == 200
    with store.engine.connect() as connection:
        users = connection.exec_driver_sql("SELECT user_id FROM served_lists").scalars().all()
    assert users == ["bob"] * 4


def test_items_are_listed_and_looked_up(client: TestClient, service: Service) -> None:
    every = client.get("/items", params={"limit": 1000}).json()
    assert every["total"] == N_ITEMS == len(every["items"])
    bundle = service.generations.current.bundle
    assert [item["sid"] for item in every["items"]] == [bundle.sids.text(item) for item in range(N_ITEMS)]
    assert set(every["items"][0]) == {*bundle.items.columns, "sid"}
    blue = client.get("/items", params={"query": "BLUE", "limit": 3, "offset": 2}).json()
    wanted = [title for title in bundle.titles if "blue" in title]
    assert blue["total"] == len(wanted)
    assert [item["title"] for item in blue["items"]] == wanted[2:5]
    assert [item["item_id"] for item in client.get("/items?query=i7").json()["items"]] == ["i7"]
    some = client.get("/items", params={"item_id": ["i7", "i3", "gone"]}).json()
    assert (some["total"], [item["item_id"] for item in some["items"]]) == (2, ["i3", "i7"])
    assert client.get("/items?query=%25.*").json() == {"total": 0, "items": []}


def test_keys_and_their_scopes(run_dir: Path, store: Store) -> None:
    keys = {scope: store.create_key(scope) for scope in ("read", "write", "admin")}
    event = {"event_id": "e", "user_id": "u", "item_id": "i1", "timestamp": 1}
    calls = {
        "read": [
            ("post", "/recommend", {"requests": [{"history": ["i1"]}]}),
            ("get", "/items", None),
            ("get", "/metrics", None),
            ("get", "/store", None),
            ("get", "/drift", None),
            ("get", "/catalogue/versions", None),
            ("post", "/beside/recommend", {"requests": [{"history": ["i1"]}]}),
        ],
        "write": [("post", "/events", {"events": [event]})],
        "admin": [("delete", "/users/u", None), ("post", "/admin/bundle", {"bundle": "x"})],
    }
    with TestClient(create_app(Service(run_dir / "bundle", store, Limits(), needs_keys=True)), URL) as client:

        def status(method: str, path: str, body: Any, key: str | None) -> int:
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            return client.request(method, path, json=body, headers=headers).status_code

        for scope, routes in calls.items():
            for route in routes:
                assert status(*route, None) == status(*route, "sidrec_00000000_x") == 401
                for held, key in keys.items():
                    assert (status(*route, key) in (200, 422)) == (held in (scope, "admin")), (route, held)
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        store.revoke_key(keys["admin"].split("_")[1])
        assert status("get", "/items", None, keys["admin"]) == 401


def test_another_bundle_is_served_without_a_lost_request(run_dir: Path, store: Store, tmp_path: Path) -> None:
    """Its catalogue lacks an item, so that an answer shows which one it is of; the old bundle is freed."""
    shutil.copytree(run_dir / "bundle", tmp_path / "bundles" / "new")
    service = Service(run_dir / "bundle", store, Limits(), bundles=tmp_path / "bundles")
    before = weakref.ref(service.generations.current.bundle)
    stop = threading.Event()

    def ask(_: int) -> list[int]:
        codes = []
        while not stop.is_set():
            codes.append(client.post("/recommend", json={"requests": [{"history": ["i1"]}]}).status_code)
        return codes

    with TestClient(create_app(service), URL) as client, ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, number) for number in range(4)]
        for _ in range(2):
            assert client.post("/admin/bundle", json={"bundle": "new"}).json()["model"] == "sft"
        stop.set()
        assert {code for future in asking for code in future.result()} == {200}
        gc.collect()
        assert before() is None
        for path in (
            "../run/bundle",
            "/etc",
            "new/../..",
            ".",
            "",
            "new/nothing",
            "a\0b",
            "x" * 400,
            str(run_dir / "bundle"),
        ):
            assert client.post("/admin/bundle", json={"bundle": path}).status_code == 422
    assert service.generations.current.folder == tmp_path / "bundles" / "new"


def test_a_store_that_is_away_is_503_and_histories_are_answered(
    run_dir: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("no server"))

    with TestClient(create_app(Service(run_dir / "bundle", store, Limits())), URL) as client:
        with monkeypatch.context() as patch:
            for name in ("history", "add_events", "check", "log_lists", "delete_user"):
                patch.setattr(Store, name, away)
            event = {"event_id": "e", "user_id": "u", "item_id": "i1", "timestamp": 1}
            answers = [
                client.post("/recommend", json={"requests": [{"user": "ann"}]}),
                client.post("/events", json={"events": [event]}),
                client.get("/readyz"),
                client.delete("/users/ann"),
            ]
            assert [each.status_code for each in answers] == [503] * 4
            assert answers[0].headers["retry-after"] == "1"
            assert lists_of(client, {"history": ["i1"]})[0]["items"]
            assert client.get("/healthz").json()["status"] == "ok"
        assert client.get("/readyz").status_code == 200
    assert store.counts().lists == 1  # it waited for the store


def test_a_store_that_stays_away_does_not_keep_the_service_from_ending(
    run_dir: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> None:
        raise OperationalError("INSERT", {}, Exception("no server"))

    monkeypatch.setattr(Store, "log_lists", away)
    service = Service(run_dir / "bundle", store, Limits())
    with TestClient(create_app(service), URL) as client:
        for _ in range(3):
            lists_of(client, {"history": ["i1"]}, {"history": ["i2"]})
    assert "the store does not answer (OperationalError)" in capsys.readouterr().err
    assert service.metrics.registry.get_sample_value("sidrec_lists_lost_total") == 6


def test_what_prometheus_reads(client: TestClient) -> None:
    lists_of(client, {"history": ["i1"]}, {"history": ["i2"]})
    client.post("/recommend", json={})
    client.get("/no/such/route")
    text = client.get("/metrics").text
    for line in (
        'sidrec_requests_total{method="POST",route="/recommend",status="200"} 1.0',
        'sidrec_requests_total{method="POST",route="/recommend",status="422"} 1.0',
        'sidrec_requests_total{method="any",route="none",status="404"} 1.0',
        'sidrec_request_seconds_count{route="/recommend"} 2.0',
        "sidrec_batch_size_sum 2.0",
        "sidrec_queue_length 0.0",
        'sidrec_catalogue_version{model="sft"} 1.0',
    ):
        assert line in text
    assert float(text.split("\nsidrec_model_seconds_total ")[1].split()[0]) > 0


def test_the_page_and_the_description_load_nothing_from_elsewhere(run_dir: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<title>it</title>", encoding="utf-8")
    (tmp_path / "page" / "page.js").write_text("1", encoding="utf-8")
    service = Service(run_dir / "bundle", store, Limits())
    with TestClient(create_app(service, page=tmp_path / "page"), URL) as client:
        page = client.get("/")
        assert page.text == "<title>it</title>"
        assert client.get("/page.js").text == "1"
        assert client.get("/../store.db").status_code == 404
        description = client.get("/docs")
        assert "POST /recommend" in description.text
        assert "<script" not in description.text
        assert "http:" not in description.text.replace("http://127.0.0.1", "")
        for answer in (page, description, client.get("/healthz"), client.get("/nothing")):
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert "RecommendCall" in client.get("/openapi.json").json()["components"]["schemas"]

"""Items come and go while the service answers."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from run_dirs import RQ_FLAGS
from shop_runs import call, shop_run
from starlette.testclient import TestClient

from sidrec.serving import add_items, catalogue, remove_items
from sidrec.serving.bundle import Bundle
from sidrec.serving.limits import Limits
from sidrec.serving.routes import create_app
from sidrec.serving.service import Service
from sidrec.serving.store import Store

URL = "http://127.0.0.1"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_run(tmp_path_factory.mktemp("items") / "", "assign", **RQ_FLAGS)


@pytest.fixture
def folder(shop: Path, tmp_path: Path) -> Path:
    shutil.copytree(shop / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def client(folder: Path, tmp_path: Path) -> Iterator[TestClient]:
    service = Service(folder, Store.open(str(tmp_path / "store.db")), Limits())
    with TestClient(create_app(service), URL) as client:
        yield client


def listed(client: TestClient, k: int = 80) -> dict[str, float]:
    answer = client.post("/recommend", json={"requests": [{"history": ["i1", "i2"], "k": k, "keep_seen": True}]})
    return {item["item_id"]: item["score"] for item in answer.json()["lists"][0]["items"]}


def test_new_items_are_recommended_and_are_in_the_bundle(client: TestClient, folder: Path) -> None:
    assert listed(client).keys() == {f"i{item}" for item in range(62)}
    new = [{"item_id": "n/1", "title": "The red kettle", "year": 1999}, {"item_id": "i3", "year": 2001}]
    changed = client.post("/items", json={"items": new}).json()
    assert changed == {"catalogue_version": 2, "added": 1, "changed": 1, "removed": 0, "items": 63}
    assert client.post("/items", json={"items": new}).json()["catalogue_version"] == 2  # changes nothing
    lists = client.post("/recommend", json={"requests": [{"history": ["n/1"], "k": 3}]}).json()
    assert lists["catalogue_version"] == 2
    assert lists["lists"][0]["reason"] is None
    assert "n/1" in listed(client)
    (item,) = client.get("/items?query=KETTLE").json()["items"]
    assert (item["item_id"], item["year"], item["sid"][:3]) == ("n/1", 1999, "<a_")
    again = Bundle.load(folder)
    assert again.items["item_id"][62] == "n/1"
    assert client.get("/healthz").json()["catalogue_version"] == 2
    removed = client.delete("/items/n%2F1").json()
    assert removed == {"catalogue_version": 3, "added": 0, "changed": 0, "removed": 1, "items": 62}
    assert "n/1" not in listed(client)
    again = client.delete("/items/n%2F1")
    assert (again.status_code, again.json()["detail"]) == (404, "item 'n/1' has been removed already; leave it out.")
    assert client.get("/healthz").json()["catalogue_version"] == 3
    assert client.get("/items?query=kettle").json()["total"] == 0
    lists = client.post("/recommend", json={"requests": [{"history": ["n/1"], "k": 3}]}).json()["lists"]
    assert (len(lists[0]["items"]), lists[0]["reason"]) == (3, None)  # it still says what the user likes


def test_what_commands_change_is_served_in_all_routes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sidrec.serving.service.SECONDS_BETWEEN_LOOKS", 0.02)
    (tmp_path / "new.csv").write_text("item_id,title\nn1,The red kettle\n")
    service = Service(folder, Store.open(str(tmp_path / "store.db")), Limits())
    with TestClient(create_app(service), URL) as client:
        call(add_items.main, tmp_path / "new.csv", "--bundle", folder)
        waited(lambda: client.get("/healthz").json()["catalogue_version"] == 2)
        assert client.get("/catalogue/versions").json()["current"] == 2
        assert [item["title"] for item in client.get("/items?query=n1").json()["items"]] == ["The red kettle"]
        assert "n1" in listed(client)
        call(catalogue.main, "--bundle", folder, "--rollback", "1")
        waited(lambda: client.get("/items?query=n1").json()["total"] == 0)
        assert "n1" not in listed(client)
        record = folder / "catalogue" / "versions.json"
        whole = record.read_text()
        record.write_text(whole.replace('"current": 1', '"current": 2'))
        waited(lambda: "versions.json is not as it was written" in capsys.readouterr().err)
        assert client.get("/healthz").json()["catalogue_version"] == 1
        record.write_text(whole)


def test_a_change_builds_on_what_commands_made(folder: Path, client: TestClient, tmp_path: Path) -> None:
    """Before the service has looked: nothing that the answer says is not served."""
    (tmp_path / "new.csv").write_text("item_id,title\nn1,The red kettle\n")
    call(add_items.main, tmp_path / "new.csv", "--bundle", folder)
    unchanged = client.post("/items", json={"items": [{"item_id": "n1", "title": "The red kettle"}]}).json()
    assert unchanged == {"catalogue_version": 2, "added": 0, "changed": 0, "removed": 0, "items": 63}
    assert client.get("/items?query=n1").json()["total"] == 1
    call(remove_items.main, "i7", "--bundle", folder)
    assert client.delete("/items/i7").status_code == 404
    assert "i7" not in listed(client)
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace('"bytes": ', '"bytes": 1'))
    assert client.delete("/items/i8").status_code == 422
    assert "i8" in listed(client)


def waited(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"item_id": "n1", "colour": "red"}], "items row 1 has a column 'colour'"),
        ([{"title": "The red kettle"}], "items row 1 has no item_id"),
        ([{"item_id": "n1", "title": "a"}, {"item_id": "n1", "title": "b"}], "'n1' is in rows 1 and 2"),
        ([{"item_id": " ", "title": "a"}], "row 1"),
        ([{"item_id": "n1", "title": "a", "year": "soon"}], "column 'year' holds 'soon'"),
        ([{"item_id": "n1", "title": ["a", "b"]}], ""),
    ],
)
def test_an_item_that_does_not_fit_changes_nothing(
    client: TestClient, items: list[dict[str, object]], words: str
) -> None:
    answer = client.post("/items", json={"items": items})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert client.get("/healthz").json()["catalogue_version"] == 1
    assert client.delete("/items/nothing").status_code == 404


def test_a_removed_item_is_in_no_answer_that_comes_after(client: TestClient) -> None:
    """Answers that begin before the removal may have it; none that is received after the removal's answer."""
    removed: set[str] = set()
    faults, stop = [], threading.Event()

    def ask(_: int) -> int:
        answers = 0
        while not stop.is_set():
            gone = set(removed)
            faults.extend(gone & listed(client).keys())
            answers += 1
        return answers

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, number) for number in range(4)]
        for item in ("i5", "i17", "i60"):
            assert client.delete(f"/items/{item}").status_code == 200
            removed.add(item)
        stop.set()
        assert sum(future.result() for future in asking) > 4
    assert not faults
    assert not removed & listed(client).keys()

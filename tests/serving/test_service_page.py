"""The service's page in Chromium: a history clicked together and its list, the catalogue, health; whatever a title holds is text."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from browser import BESIDES_THE_WIDTH, asked_urls, chromium, complaints, select, texts, waited, wide
from run_dirs import RQ_FLAGS
from shop_runs import shop_run
from starlette.testclient import TestClient

from sidrec.decoding.trie import SidTrie
from sidrec.serving import remove_items
from sidrec.serving.answer import Question, answer
from sidrec.serving.item_filter import allowed_by
from sidrec.serving.limits import Limits
from sidrec.serving.routes import create_app
from sidrec.serving.service import Service
from sidrec.serving.store import Store

ROWS = "#list > li"
HOSTILE = (
    '<img src=x onerror="window.ran = 1">',
    '"><script>window.ran = 1</script>',
    "<svg onload=window.ran=1>",
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "long" * 2500,
    "👩‍👩‍👧‍👦🇺🇳 emoji" * 20,
    "javascript:window.ran=1 {{7*7}} ${window.ran=1}",
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two: `shop`, and `other`, which lacks an item."""
    folder = tmp_path_factory.mktemp("page")
    run = shop_run(folder, "assign", **RQ_FLAGS)
    for name in ("shop", "other"):
        shutil.copytree(run / "bundle", folder / name)
    remove_items.main(["i13", "--bundle", str(folder / "other")])
    return folder


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The address of a server of its own thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def service(bundles: Path) -> Service:
    return Service(bundles / "shop", Store.open(str(bundles / "store.db")), Limits(), beside=bundles / "other")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture(scope="module")
def url(service: Service, driver: Any) -> Iterator[str]:
    """driver: without one nothing is served."""
    with serving(service) as url:
        yield url


@pytest.fixture
def page(driver: Any, url: str) -> Iterator[Any]:
    """The page with the list of nobody; at the end it has run nothing, complained of nothing and asked no other host."""
    driver.get("about:blank")
    complaints(driver), asked_urls(driver)
    wide(driver, 1200)
    driver.get(url)
    waited(driver, lambda: len(texts(driver, ROWS)) == 10)
    yield driver
    assert driver.execute_script("return window.ran === undefined")
    assert complaints(driver) == []
    strangers = [asked for asked in asked_urls(driver) if not asked.startswith((url, "about:"))]
    assert strangers == []


def ids(page: Any, rows: str = ROWS) -> list[str]:
    return texts(page, f"{rows} .id code")


def click(page: Any, selector: str) -> None:
    waited(page, lambda: select(page, selector).is_displayed())
    select(page, selector).click()


def write(page: Any, selector: str, text: str) -> None:
    """As a user who replaces what stands there. What is beyond the basic plane is set, since ChromeDriver types none of it."""
    field = select(page, selector)
    page.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
        field,
        text,
    )


def click_together(page: Any, *titles: str) -> None:
    for number, title in enumerate(titles, 1):
        write(page, "#search", title)
        waited(page, lambda title=title: texts(page, "#hits .title")[:1] == [title])
        click(page, "#hits button")
        waited(
            page,
            lambda number=number: (
                f"{number} item{'' if number == 1 else 's'} in the history" in texts(page, "#status")[0]
            ),
        )


def wanted(service: Service, history: list[str], question: Question) -> list[str]:
    """What the list must be."""
    bundle = service.generations.current.bundle
    rows = answer(bundle, [np.array([bundle.index_of[name] for name in history], dtype=np.int64)], question)
    return rows["item_id"].drop_nulls().to_list()


def test_a_clicked_history_gets_its_list_with_the_nearest_of_the_history(page: Any, service: Service) -> None:
    assert texts(page, "#reason") == ["no history, so what was most taken in training"]
    assert ids(page) == wanted(service, [], Question())
    click_together(page, "The red drum", "The red rope", "The blue kite")
    history, bundle = ["i3", "i4", "i18"], service.generations.current.bundle
    assert texts(page, "#history .id code") == history
    assert ids(page) == wanted(service, history, Question())
    assert not select(page, "#reason").is_displayed()
    codes = {name: bundle.sids.codes[row] for name, row in bundle.index_of.items()}
    title_of = dict(zip(bundle.items["item_id"], bundle.titles, strict=True))
    for name, said in zip(ids(page), texts(page, f"{ROWS} .why"), strict=True):
        shared = [int((codes[name] == codes[old]).cumprod().sum()) for old in history]
        newest = max(range(3), key=lambda place: (shared[place], place))
        assert (title_of[history[newest]] in said) if shared[newest] else "No item" in said
    assert any(text == "No item of the history shares its first code." for text in texts(page, f"{ROWS} .why"))
    assert sorted(map(int, texts(page, "#tree .rank"))) == list(range(1, 11))
    marked = {"".join(f"<{'ab'[level]}_{code}>" for level, code in enumerate(codes[old])) for old in history}
    for text in texts(page, "#tree .codes .has"):
        assert not text or any(text in sid for sid in marked)
    scores = [float(text.removesuffix(" %")) for text in texts(page, f"{ROWS} .score")]
    assert scores == sorted(scores, reverse=True)


def test_the_history_is_ordered_and_removable(page: Any, service: Service) -> None:
    click_together(page, "The red drum", "The blue kite")
    click(page, "#history li:nth-child(2) button[aria-label^=Move]")
    waited(page, lambda: ids(page) == wanted(service, ["i18", "i3"], Question()))
    assert texts(page, "#history .title") == ["The blue kite", "The red drum"]
    click(page, "#history li:nth-child(1) button[aria-label^=Remove]")
    waited(page, lambda: ids(page) == wanted(service, ["i3"], Question()))
    assert page.switch_to.active_element.get_attribute("aria-label").startswith("Remove The red drum")


def test_a_filter_and_the_options_change_the_list(page: Any, service: Service) -> None:
    click_together(page, "The red drum")
    assert texts(page, "#hits .title") == ["The red drum"]
    years = dict(service.generations.current.bundle.items.select("item_id", "year").iter_rows())
    assert texts(page, f"{ROWS} .cells") == [f"year: {years[name]}" for name in ids(page)]
    items = service.generations.current.bundle.items
    click(page, "#add-condition")
    for field, value in (("select:nth-of-type(1)", "year"), ("select:nth-of-type(2)", ">=")):
        select(page, f".condition {field} option[value='{value}']").click()
    write(page, ".condition input", "1994")
    allowed = allowed_by(items, [{"column": "year", "op": ">=", "value": 1994}])
    waited(page, lambda: ids(page) == wanted(service, ["i3"], Question(allowed=allowed)))
    write(page, "#diversity", "1")
    write(page, "#k", "5")
    waited(page, lambda: ids(page) == wanted(service, ["i3"], Question(5, allowed=allowed, diversity=1)))
    click(page, ".condition button")
    click(page, "#keep-seen")
    waited(page, lambda: ids(page) == wanted(service, ["i3"], Question(5, keep_seen=True, diversity=1)))
    write(page, "#k", "501")
    waited(page, lambda: "above the 500" in texts(page, "#alert")[0])


def test_two_bundles_beside_each_other(page: Any, service: Service) -> None:
    click_together(page, "The red drum")
    assert texts(page, "#beside-name") == ["other"]
    write(page, "#k", "62")
    click(page, "#beside")
    waited(page, lambda: len(ids(page, "#beside-list > li")) == 60)
    assert len(ids(page)) == 61
    assert set(ids(page)) - set(ids(page, "#beside-list > li")) == {"i13"}
    assert len(texts(page, "#beside-list .tag")) >= 60
    assert "60 items are in both lists." in texts(page, "#beside-note")[0]


def test_lists_to_compare_with_are_not_in_the_store(bundles: Path) -> None:
    body = {"requests": [{"history": ["i3"], "k": 62}]}
    for beside, status in ((None, 422), (bundles / "other", 200)):
        location = str(bundles / f"{status}.db")
        service = Service(bundles / "shop", Store.open(location), Limits(), beside=beside)
        with TestClient(create_app(service), "http://127.0.0.1") as client:
            assert client.post("/recommend", json=body).status_code == 200
            reply = client.post("/beside/recommend", json=body)
            assert reply.status_code == status
            assert ("--beside" in reply.text) == (beside is None)
        store = Store.open(location)
        assert store.counts().lists == 1
        store.close()


def test_an_item_is_added_edited_and_removed(page: Any, service: Service, url: str) -> None:
    page.get(f"{url}/#catalogue")
    waited(page, lambda: len(texts(page, "#items tbody tr")) == 20)
    click(page, "#add-item")
    write(page, "#field-item_id", "n1")
    write(page, "#field-year", "soon")
    click(page, "#edit .main")
    waited(page, lambda: texts(page, "#edit-alert") == ["year: soon is not a number."])
    write(page, "#field-year", "1999")
    click(page, "#edit .main")
    waited(page, lambda: "item 'n1' is new, and the file has no column 'title'" in texts(page, "#edit-alert")[0])
    write(page, "#field-title", "The red kettle")
    click(page, "#edit .main")
    waited(page, lambda: "1 added, 0 changed, 0 removed; 63 items." in texts(page, "#status")[0])
    write(page, "#catalogue-search", "kettle")
    waited(page, lambda: texts(page, "#items td .title") == ["The red kettle"])
    click(page, "#items button[aria-label='Edit The red kettle']")
    write(page, "#field-title", "The red pot")
    click(page, "#edit .main")
    waited(page, lambda: "0 added, 1 changed" in texts(page, "#status")[0])
    assert service.generations.current.bundle.titles[62] == "The red pot"
    assert len(texts(page, "#versions tbody tr")) == 3
    page.get(f"{url}/#lists")
    click_together(page, "The red pot")
    write(page, "#k", "3")
    waited(page, lambda: len(ids(page)) == 3)
    (first, *_), title = ids(page), texts(page, f"{ROWS} .title")[0]
    page.get(f"{url}/#catalogue")
    write(page, "#catalogue-search", first)
    waited(page, lambda: texts(page, "#items td .title") == [title])
    click(page, f"#items button[aria-label='Remove {title}']")
    click(page, "#remove .main")
    waited(page, lambda: "1 removed; 62 items." in texts(page, "#status")[0])
    page.get(f"{url}/#lists")
    waited(page, lambda: first not in ids(page) and len(ids(page)) == 3)
    assert ids(page) == wanted(service, ["n1"], Question(3))


def test_hostile_titles_are_text_in_every_view(page: Any, service: Service, url: str) -> None:
    body = [{"item_id": f"<b>{number}</b>/'\"&", "title": title} for number, title in enumerate(HOSTILE)]
    assert (
        page.execute_async_script(
            "const [body, done] = arguments; fetch('items', {method: 'POST', headers: {'Content-Type': 'application/json'},"
            "body: JSON.stringify({items: body})}).then((answer) => done(answer.status))",
            body,
        )
        == 200
    )
    page.refresh()
    write(page, "#k", "100")
    for number, title in enumerate(HOSTILE, 1):
        write(page, "#search", title[:30])
        waited(page, lambda title=title: title in texts(page, "#hits .title"))
        click(page, "#hits button")
        waited(page, lambda number=number: len(texts(page, "#history li")) == number)
    assert texts(page, "#history .title") == list(HOSTILE)
    click(page, "#keep-seen")
    waited(page, lambda: set(HOSTILE) <= set(texts(page, f"{ROWS} .title")))
    for width in (1200, 360):
        wide(page, width)
        assert page.execute_script(BESIDES_THE_WIDTH) == []
    assert (
        page.execute_script("return document.querySelectorAll('img, script:not([src]), iframe, b:not(.sid b)').length")
        == 0
    )
    page.get(f"{url}/#catalogue")
    for title in HOSTILE:
        write(page, "#catalogue-search", title[:30])
        waited(page, lambda title=title: texts(page, "#items td .title") == [title])
        click(page, "#items button[aria-label^=Edit]")
        assert select(page, "#field-title").get_property("value") == title
        assert page.execute_script(BESIDES_THE_WIDTH) == []
        click(page, "#edit-cancel")
    click(page, "#items button[aria-label^=Remove]")
    assert page.execute_script(BESIDES_THE_WIDTH) == []
    click(page, "#remove .main")
    waited(page, lambda: "1 removed" in texts(page, "#status")[0] and not texts(page, "#items td .title"))
    assert body[-1]["item_id"] not in names_of(service)
    assert body[0]["item_id"] in names_of(service)


def names_of(service: Service) -> set[str]:
    bundle = service.generations.current.bundle
    assert isinstance(bundle.trie, SidTrie)
    return set(bundle.items["item_id"].gather(bundle.trie.item_of_leaf[:].tolist()))


def test_the_keyboard_alone_leads_from_the_search_to_the_list(page: Any, service: Service) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(key: str) -> None:
        ActionChains(page).send_keys(key).perform()

    def tab_to(selector: str) -> None:
        for _ in range(30):
            press(Keys.TAB)
            if page.execute_script("return document.activeElement.matches(arguments[0])", selector):
                outline = "return getComputedStyle(document.activeElement).outlineStyle"
                assert page.execute_script(outline) != "none", f"nobody sees that {selector} is next"
                return
        raise AssertionError(f"no Tab leads to {selector}")

    tab_to("#search")
    press("red drum")
    waited(page, lambda: texts(page, "#hits .title") == ["The red drum"])
    tab_to("#hits button")
    press(Keys.ENTER)
    waited(page, lambda: ids(page) == wanted(service, ["i3"], Question()))
    assert "1 item in the history, 10 recommended" in texts(page, "#status")[0]
    tab_to("#history button[aria-label^=Remove]")
    press(Keys.ENTER)
    waited(page, lambda: ids(page) == wanted(service, [], Question()))
    assert page.switch_to.active_element.get_attribute("id") == "search"


def test_every_field_and_button_has_a_name_and_nothing_sticks_out_of_a_phone(page: Any, url: str) -> None:
    click_together(page, "The red drum", "The blue kite")
    click(page, "#add-condition")
    click(page, "#beside")
    waited(page, lambda: len(ids(page, "#beside-list > li")) == 10)
    for view in ("lists", "catalogue", "health"):
        page.get(f"{url}/#{view}")
        waited(page, lambda view=view: select(page, f"#{view} h1").is_displayed())
        waited(page, lambda view=view: view == "lists" or texts(page, f"#{view} td"))
        for width in (1200, 360):
            wide(page, width)
            assert page.execute_script(BESIDES_THE_WIDTH) == []
            shown = "return [document.documentElement.scrollWidth, innerWidth]"
            assert (lambda scroll, inner: scroll <= inner == width)(*page.execute_script(shown))
        fields = page.find_elements("css selector", f"#{view} :is(input, select, button)")
        assert [
            field.get_attribute("outerHTML") for field in fields if field.is_displayed() and not field.accessible_name
        ] == []
    click(page, "nav a[href='#catalogue']")
    click(page, "#add-item")
    assert page.execute_script(BESIDES_THE_WIDTH) == []


def test_on_a_phone_the_list_comes_before_its_options(page: Any) -> None:
    click_together(page, "The red drum")
    top = "return ['#search', '#list', '#options'].map((each) => document.querySelector(each).getBoundingClientRect().top)"
    wide(page, 360)
    assert (tops := page.execute_script(top)) == sorted(tops)
    wide(page, 1200)
    search, listed, options = page.execute_script(top)
    assert listed < options
    assert search < options
    write(page, "#search", "red drum")
    waited(page, lambda: texts(page, "#status") == ["1 item matches."])
    write(page, "#search", "red")
    waited(page, lambda: texts(page, "#status")[0].endswith(" items match; these are the first 8."))


def test_health_says_what_the_metrics_say(page: Any, service: Service, url: str) -> None:
    page.get(f"{url}/#health")
    waited(page, lambda: texts(page, "#figures dd"))
    figures = dict(zip(texts(page, "#figures dt"), texts(page, "#figures dd"), strict=True))
    version = service.generations.current.version
    assert (figures["Model"], figures["Version of the catalogue"]) == ("sft", str(version))
    lists = service.metrics.registry.get_sample_value("sidrec_request_seconds_count", {"route": "/recommend"})
    assert sum(int(row) for row in texts(page, "#latency td:nth-child(3)")) == lists
    click(page, "#drift-look")
    waited(page, lambda: texts(page, "#drift li") == ["the store has no events"])
    batches = service.metrics.registry.get_sample_value("sidrec_batch_size_count")
    assert sum(int(row) for row in texts(page, "#batches td:nth-child(3)")) == batches


def test_a_key_is_asked_for_and_stored_nowhere(driver: Any, bundles: Path) -> None:
    store = Store.open(str(bundles / "keys.db"))
    key = store.create_key("read")
    with serving(Service(bundles / "shop", store, Limits(), needs_keys=True)) as url:
        driver.get(url)
        waited(driver, lambda: "a key is needed" in texts(driver, "#alert")[0])
        write(driver, "#key", key)
        click(driver, "#key-form button")
        waited(driver, lambda: len(texts(driver, ROWS)) == 10)
        assert texts(driver, "#alert") == [""]
        stored = "return [localStorage.length, sessionStorage.length, document.cookie]"
        assert driver.execute_script(stored) == [0, 0, ""]
        driver.get(f"{url}/#catalogue")
        click(driver, "#items button[aria-label^=Remove]")
        click(driver, "#remove .main")
        waited(driver, lambda: "this needs a key of scope write" in texts(driver, "#remove-alert")[0])
        driver.get("about:blank")

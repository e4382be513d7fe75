"""The routes of the service, and the application that has them; /docs explains each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import DatabaseError, DataError, InterfaceError, TimeoutError
from starlette.concurrency import run_in_threadpool

from sidrec.pipeline.errors import InputError
from sidrec.serving import requests as bodies
from sidrec.serving.access import needs
from sidrec.serving.changes import AbsentItemError
from sidrec.serving.docs_page import docs_page
from sidrec.serving.generation import Generation
from sidrec.serving.limits import Gate
from sidrec.serving.service import DRIFT_DAYS, Service
from sidrec.serving.versions import versions

PAGE = Path(__file__).resolve().parent / "page"
MOST_LISTED, FARTHEST = 1_000, 2**40  # items of an answer of /items, and its offset
AWAY = (DatabaseError, InterfaceError, TimeoutError)  # damaged ones too
routes = APIRouter()


async def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def leased(request: Request) -> AsyncIterator[Generation]:
    """The generation that a request is answered with, until the answer is sent."""
    async with request.app.state.service.generations.lease() as generation:
        yield generation


Leased = Annotated[Generation, Depends(leased)]
Serving = Annotated[Service, Depends(service_of)]
READ, WRITE, ADMIN = ([Depends(needs(scope))] for scope in ("read", "write", "admin"))


@routes.post("/recommend", response_model=bodies.Recommended, dependencies=READ)
async def recommend(call: bodies.RecommendCall, generation: Leased, service: Serving) -> Response:
    """One list or many: of users by the store's events, or of histories of item ids. Needs a key of scope read."""
    return JSONResponse(await service.recommend(call, generation))


@routes.post("/beside/recommend", response_model=bodies.Recommended, dependencies=READ)
async def recommend_beside(call: bodies.RecommendCall, service: Serving) -> Response:
    """As /recommend, by the bundle of --beside; the store gets none of these lists. Needs a key of scope read."""
    if service.beside is None:
        raise InputError("the service was started without --beside, so there is no bundle to compare with.")
    return JSONResponse(await service.recommend(call, service.beside))


@routes.get("/items", response_model=bodies.ItemsAnswer, dependencies=READ)
async def items(
    generation: Leased,
    service: Serving,
    query: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
    offset: Annotated[int, Query(ge=0, le=FARTHEST)] = 0,
    item_id: Annotated[list[str] | None, Query(max_length=MOST_LISTED)] = None,
) -> Response:
    """Items whose title holds the query in whatever case, or whose id it is; without one all. Of several item_id, only these items. Needs a
    key of scope read."""
    total, part = await run_in_threadpool(service.items, generation, query, limit, offset, item_id)
    return Response(f'{{"total": {total}, "items": {part.write_json()}}}', media_type="application/json")


@routes.get("/catalogue/versions", dependencies=READ)
async def catalogue_versions(generation: Leased) -> bodies.Versions:
    """Every version of the catalogue, and which one is served. Needs a key of scope read."""
    made, _ = await run_in_threadpool(versions, generation.folder)
    return bodies.Versions(current=generation.version, versions=[asdict(version) for version in made])


@routes.get("/store", dependencies=READ)
async def store(service: Serving) -> dict[str, int | None]:
    """How many rows the store has; counting takes a second for tens of millions. Needs a key of scope read."""
    return asdict(await run_in_threadpool(service.store.counts))


@routes.get("/drift", dependencies=READ)
async def drift(service: Serving) -> bodies.Drift:
    """How far the store's events of the last 7 days are from what the bundle was trained on, in sentences; it reads them all. Needs a key
    of scope read."""
    return bodies.Drift(days=DRIFT_DAYS, sentences=await service.drift())


@routes.post("/events", response_model=bodies.EventsAnswer, dependencies=WRITE)
async def events(call: bodies.EventsCall, service: Serving) -> Response:
    """Store what users did. Answers when it is on the disk; sending the same again changes nothing. Needs a key of scope write."""
    return JSONResponse(asdict(await run_in_threadpool(service.add_events, call)))


@routes.delete("/users/{user_id:path}", response_model=bodies.UserDeleted, dependencies=ADMIN)
async def delete_user(user_id: str, service: Serving) -> Response:
    """Delete a user's events and served lists. Needs a key of scope admin."""
    return JSONResponse(asdict(await run_in_threadpool(service.delete_user, user_id)))


@routes.post("/items", response_model=bodies.CatalogueChanged, dependencies=WRITE)
async def add_items(call: bodies.ItemsCall, service: Serving) -> Response:
    """Add items to the catalogue, or change some; answers when lists may hold them. Needs a key of scope write."""
    return JSONResponse((await service.add_items(call)).model_dump())


@routes.delete("/items/{item_id:path}", response_model=bodies.CatalogueChanged, dependencies=WRITE)
async def remove_item(item_id: str, service: Serving) -> Response:
    """Take an item out of the catalogue; answers when no list will hold it, with 404 where it is none of the catalogue, or was taken out
    before. Needs a key of scope write."""
    return JSONResponse((await service.remove_item(item_id)).model_dump())


@routes.post("/admin/bundle", response_model=bodies.BundleSwitched, dependencies=ADMIN)
async def switch_bundle(call: bodies.BundleCall, service: Serving) -> Response:
    """Load another bundle, and serve it from then on. Needs a key of scope admin."""
    generation = await service.switch_bundle(call.bundle)
    return JSONResponse({"model": generation.bundle.name, "catalogue_version": generation.version})


@routes.get("/healthz")
async def healthz(service: Serving) -> dict[str, Any]:
    """The process answers."""
    generation, beside = service.generations.current, service.beside
    return {
        "status": "ok",
        "model": generation.bundle.name,
        "policy": generation.policy,
        "catalogue_version": generation.version,
        "beside": None if beside is None else beside.folder.name,
    }


@routes.get("/readyz")
async def readyz(service: Serving) -> dict[str, str]:
    """The model is loaded and the store answers; 503 where it does not."""
    await run_in_threadpool(service.store.check)
    return {"status": "ready"}


@routes.get("/metrics", dependencies=READ)
async def metrics(service: Serving) -> Response:
    """For Prometheus. Needs a key of scope read."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@routes.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    return HTMLResponse(docs_page(request.app.openapi()))


def create_app(service: Service, hosts: frozenset[str] | None = None, page: Path = PAGE) -> Gate:
    """The application. hosts: as of `Gate`. page: a folder with index.html, which is served where it exists."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.open()
        following = asyncio.create_task(service.follow())
        yield
        following.cancel()
        await run_in_threadpool(service.close)

    app = FastAPI(title="sidrec", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(routes)
    app.exception_handler(InputError)(_input_error)
    app.exception_handler(AbsentItemError)(_absent_item)
    app.exception_handler(RequestValidationError)(_not_valid)
    app.exception_handler(DataError)(_input_error)
    for kind in AWAY:
        app.exception_handler(kind)(_database_away)
    if (page / "index.html").is_file():
        app.mount("/", StaticFiles(directory=page, html=True), name="page")
    return Gate(app, service.limits, service.metrics, hosts)


async def _input_error(_: Request, error: Exception) -> Response:
    said = str(error) if isinstance(error, InputError) else "a value is one that the database does not hold."
    return _said(422, said)


async def _absent_item(_: Request, error: Exception) -> Response:
    return _said(404, str(error))


async def _not_valid(_: Request, error: Exception) -> Response:
    """Where it is and what is wrong, without the values."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5]]
    return _said(422, "; ".join(faults)[:2000])


async def _database_away(_: Request, error: Exception) -> Response:
    return _said(503, f"the store does not answer ({type(error).__name__}); try again.", {"Retry-After": "1"})


def _said(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    """Escaped, for what clients send may be no text that UTF-8 holds."""
    return Response(json.dumps({"detail": sentence}), status, headers, media_type="application/json")

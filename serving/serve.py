"""Serve a bundle over HTTP.

sidrec serve outputs/demo/bundle --store store.db
sidrec serve --bundle bundle --store postgresql://user@host/name --host 0.0.0.0 --port 8000 --bundles /srv/bundles

It ends at SIGTERM or Ctrl-C with exit code 0: it stops accepting, answers what it has begun, and stores what waits.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import first_named, parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.serving.extra import STORE_HELP, require_store

if TYPE_CHECKING:
    from sidrec.serving.service import Service

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
BACKLOG = 1024  # connections that wait to be accepted
MOST = 2**31 - 1  # of a setting that counts


@dataclass
class ServeConfig:
    """Serve a bundle over HTTP: lists, items, events. Keys (`sidrec keys`) are needed unless --host is a loopback address."""

    bundle: Path = field(metadata={"help": "Folder that `sidrec bundle` has written, or a copy of it."})
    store: str = field(metadata={"help": f"{STORE_HELP} A missing file is made."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 is every one."})
    port: int = field(default=8000, metadata={"help": "Port to listen on; 0 is any that is free."})
    require_keys: bool = field(
        default=False, metadata={"help": "Ask for keys on a loopback address too, as behind a proxy."}
    )
    bundles: Path | None = field(
        default=None,
        metadata={"help": "Folder below which POST /admin/bundle may name another bundle. Left out: it may name none."},
    )
    beside: Path | None = field(
        default=None,
        metadata={
            "help": "Folder of another bundle, whose lists the page shows beside those of --bundle; POST /beside/recommend asks it."
        },
    )
    batch_ms: float = field(
        default=5.0,
        metadata={
            "help": "Milliseconds that a request may wait for others to be answered with; 0: each is answered alone."
        },
    )
    batch_most: int = field(default=64, metadata={"help": "The most requests that are answered together."})
    max_concurrency: int = field(
        default=256,
        metadata={"help": "HTTP requests that are answered at one time; one more gets 429 and Retry-After."},
    )
    max_body_bytes: int = field(default=1_000_000, metadata={"help": "Bytes of a body; a longer one gets 413."})
    max_k: int = field(default=500, metadata={"help": "Items of a list; more get 422."})
    max_history: int = field(
        default=10_000,
        metadata={
            "help": "Item ids of a request's history; more get 422. Of a user in the store the newest so many events."
        },
    )
    max_requests: int = field(default=100, metadata={"help": "Lists of one call of /recommend; more get 422."})
    max_events: int = field(
        default=1_000, metadata={"help": "Events of one call of /events, items of one of /items; more get 422."}
    )
    shutdown_seconds: int = field(
        default=30, metadata={"help": "Seconds after which requests that are not answered at the end are given up."}
    )

    def __post_init__(self) -> None:
        positive = ("batch_most", "max_concurrency", "max_body_bytes", "max_k", "max_history", "max_requests")
        for name in (*positive, "max_events", "shutdown_seconds"):
            if not 1 <= getattr(self, name) <= MOST:
                raise InputError(f"--{name} {getattr(self, name)} is not from 1 to {MOST:,}; give such a number.")
        if not 0 <= self.batch_ms <= 1000:
            raise InputError(f"--batch_ms {self.batch_ms} is not from 0 to 1000 milliseconds.")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port {self.port} is no port; give 0 to 65535.")


def main(arguments: Sequence[str] | None = None) -> None:
    words = first_named("bundle", sys.argv[1:] if arguments is None else arguments)
    config = parse_config(ServeConfig, words)
    require_store()
    require_server()
    if config.bundles is not None and not config.bundles.is_dir():
        raise InputError(f"--bundles {config.bundles}: there is no such folder; check the path.")
    import uvicorn  # with torch and polars below, for which --help does not wait

    from sidrec.serving.routes import create_app

    listening(config.host, config.port).close()  # what cannot be is said before the model is loaded
    screen, service = Screen("serve"), service_of(config)
    with listening(config.host, config.port) as listener:
        app = create_app(service, hosts=None if service.needs_keys else LOOPBACK_NAMES | {config.host.lower()})
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=config.shutdown_seconds,
            )
        )
        for name in (
            signal.SIGTERM,
            signal.SIGINT,
        ):  # uvicorn hears them first, and raises them again when it has ended
            signal.signal(name, lambda *_: setattr(server, "should_exit", True))
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        keys = "keys are needed" if service.needs_keys else "no key is needed"
        screen.say(f"serve: {service.generations.current.bundle.name} at {url}, its description at {url}/docs; {keys}")
        server.run(sockets=[listener])


def require_server() -> None:
    """Raise InputError unless what the service is built on is installed."""
    missing = next((name for module, name in PACKAGES.items() if find_spec(module) is None), None)
    if missing is not None:
        raise InputError(f'serving needs {missing}, which is not installed: run `pip install "sidrec[serve]"`.')


def service_of(config: ServeConfig) -> Service:
    from sidrec.serving.about import read_about
    from sidrec.serving.access import is_loopback
    from sidrec.serving.limits import Limits
    from sidrec.serving.service import Service
    from sidrec.serving.store import Store

    for bundle in filter(None, (config.bundle, config.beside)):
        read_about(bundle)  # before a store is made
    limits = Limits(**{name: getattr(config, name) for name in Limits.__dataclass_fields__})
    needs_keys = config.require_keys or not is_loopback(config.host)
    with Store.in_use(config.store) as store:
        has_keys = any(key.revoked is None for key in store.api_keys())
    if needs_keys and not has_keys:
        raise InputError(
            f"--host {config.host} needs keys, and the store has none; run `sidrec keys --store STORE --create read` first."
        )
    wait = config.batch_ms / 1000
    return Service(
        config.bundle,
        Store.open(config.store),
        limits,
        wait,
        config.batch_most,
        needs_keys,
        config.bundles,
        config.beside,
    )


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError where the address is no one's or in use."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # the second one for names that no host has
        reason = getattr(error, "strerror", None) or "no name of a host"
        raise InputError(f"--host {host} --port {port} cannot be listened on ({reason}); name another.") from error


if __name__ == "__main__":
    run_as_command(main)

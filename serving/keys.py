"""Make, revoke and list the keys with which programs may use the service.

sidrec keys --store store.db --create write
sidrec keys --store store.db --list
sidrec keys --store store.db --revoke 1f2e3d4c
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.serving.api_keys import SCOPES
from sidrec.serving.extra import STORE_HELP, require_store

if TYPE_CHECKING:
    from sidrec.serving.store import ApiKey


@dataclass
class KeysConfig:
    """Make, revoke or list the keys with which programs may use the service."""

    store: str = field(metadata={"help": f"{STORE_HELP} --create makes a missing one."})
    create: str | None = field(
        default=None, metadata={"help": "Make a key of this scope and print it, this once.", "choices": SCOPES}
    )
    revoke: str | None = field(default=None, metadata={"help": "Id of the key that is of no use from now on."})
    list: bool = field(default=False, metadata={"help": "Print all keys: id, scope, when made, when revoked."})

    def __post_init__(self) -> None:
        if (self.create is not None) + (self.revoke is not None) + self.list != 1:
            raise InputError("give one of --create SCOPE, --revoke ID and --list.")


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(KeysConfig, arguments)
    require_store()
    from sidrec.serving.store import Store  # with SQLAlchemy, for which --help does not wait

    with Store.in_use(config.store, must_exist=config.create is None) as store:
        if config.create is not None:
            key = store.create_key(config.create)
            sys.stdout.write(f"{key}\nThis is shown once; the store keeps a salted hash. Scope: {config.create}.\n")
        elif config.revoke is not None:
            if not store.revoke_key(config.revoke):
                raise InputError(f"--revoke {config.revoke}: no active key has this id; `--list` shows them.")
            sys.stdout.write(f"revoked: {config.revoke}\n")
        else:
            sys.stdout.write("".join(f"{described(key)}\n" for key in store.api_keys()) or "no keys\n")


def described(key: ApiKey) -> str:
    """A key on one line."""
    revoked = "" if key.revoked is None else f", revoked {_second(key.revoked)}"
    return f"{key.key_id}  {key.scope:<5}  made {_second(key.created)}{revoked}"


def _second(microseconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(microseconds // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise InputError(
            f"--store has a key with the time {str(microseconds)[:60]!r}, which is none: something else wrote it; put back a copy."
        ) from error


if __name__ == "__main__":
    run_as_command(main)

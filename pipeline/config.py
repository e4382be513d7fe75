"""A stage's configuration: one dataclass or more, filled from a YAML file and from the command line."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import yaml

from sidrec.pipeline.errors import InputError

Config = TypeVar("Config")


def parse_config(kind: type[Config], arguments: list[str] | None = None) -> Config:
    """`parse_configs` for a stage with one dataclass."""
    (config,) = parse_configs((kind,), arguments)
    return config


def parse_configs(kinds: tuple[type, ...], arguments: list[str] | None = None) -> tuple[Any, ...]:
    """Fill `kinds`, dataclasses without a common field, from `--config file.yaml` and the flags after it, which win.

    `arguments`: default, the process's own. Raises InputError for a flag or a YAML key that does not exist, and for a YAML file
    that cannot be read; a value of the wrong type ends the process with code 2 (argparse's own message).
    """
    from trl import TrlParser

    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[-1] == "--config":
        raise InputError("--config needs a YAML file after it.")
    try:
        configs = TrlParser(kinds).parse_args_and_config(arguments)
    except OSError as error:
        raise InputError(
            f"--config {error.filename} cannot be read ({error.strerror}); give an existing YAML file."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"--config is not valid YAML ({' '.join(str(error).split())}).") from error
    except ValueError as error:
        raise InputError(f"{str(error).split('. ')[0]}; `--help` lists what there is.") from error
    return configs

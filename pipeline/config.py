"""A stage's configuration: dataclasses, filled from a YAML file and from the command line.

Flags are `--name value`, lists `--name a b`, switches `--name true`. A value in a YAML file is checked as a flag is. Of several sources the
later one wins: the dataclass's defaults, what suits the data's size, the run directory's last settings (or the packaged ones of its data
set), `--config`, flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import sys
import textwrap
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import read_json
from sidrec.pipeline.stage import recorded_settings

Config = TypeVar("Config")
PACKAGED = Path(__file__).resolve().parent.parent / "configs"
HELP_FLAGS, HELP_ALL = ("-h", "--help"), "--help-all"
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
GREATEST_SEED = 2**32 - 1  # of NumPy's old generator, which libraries seed
GREATEST_INTEGER = 2**63 - 1  # that arrays, tensors and databases hold
NOTHING = object()  # where neither a file nor a flag names a setting


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a configuration: its name, type, default and help. rare: shown by `--help-all` only."""

    name: str
    kind: Any
    default: Any
    help: str
    rare: bool
    choices: tuple[Any, ...]


def parse_config(kind: type[Config], arguments: Sequence[str] | None = None, *, stage: str | None = None) -> Config:
    """`parse_configs` for a stage with one dataclass."""
    (config,) = parse_configs((kind,), arguments, stage=stage)
    return config


def parse_configs(
    kinds: Sequence[type],
    arguments: Sequence[str] | None = None,
    *,
    stage: str | None = None,
    refused: Mapping[str, str] | None = None,
    forgotten: Collection[str] = (),
    suited: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> tuple[Any, ...]:
    """Fill `kinds`, dataclasses without a common field; one instance each.

    arguments: default, the process's own. stage: the folder of the run directory whose manifest holds the last settings, and the folder of
    `configs/` with those of a data set; None: neither is read. refused: reasons, by the name of a field that may not be set. forgotten:
    fields whose last setting does not count. suited: given what flags and files name, values for what they leave open. Raises InputError
    for a flag or a key that does not exist (naming the nearest one), for a value of the wrong type, and for a YAML file that cannot be
    read. `--help` and `--help-all` print and end the process.
    """
    arguments = _with_underscores(sys.argv[1:] if arguments is None else arguments)
    refused = refused or {}
    settings = {setting.name: setting for kind in kinds for setting in settings_of(kind) if setting.name not in refused}
    if asked := [word for word in arguments if word in (*HELP_FLAGS, HELP_ALL)]:
        show_help(kinds, list(settings.values()), everything=HELP_ALL in asked)
        sys.exit(0)
    flags = vars(_parser(settings, refused).parse_args(arguments))
    file = flags.pop("config", None)
    values = dict(flags)
    if file is not None:
        values = _read_settings(Path(file), settings, refused) | values
    elif stage is not None:
        run_dir = flags.get("run_dir", settings["run_dir"].default)
        if run_dir is not dataclasses.MISSING:
            remembered = {name: setting for name, setting in settings.items() if name not in forgotten}
            overwrite = bool(flags.get("overwrite"))
            values = _settings_of_run(Path(run_dir), stage, remembered, overwrite) | values
    if suited is not None:
        values = {**suited(values), **values}
    missing = [name for name, setting in settings.items() if setting.default is dataclasses.MISSING]
    absent = next((name for name in missing if name not in values), None)
    if absent is not None:
        raise InputError(f"--{absent} is missing: {settings[absent].help.rstrip('.')}; `--help` lists what there is.")
    names_of = [[field.name for field in dataclasses.fields(kind) if field.init] for kind in kinds]
    return tuple(
        kind(**{name: values[name] for name in names if name in values})
        for kind, names in zip(kinds, names_of, strict=True)
    )


def first_named(name: str, arguments: Sequence[str]) -> list[str]:
    """A command line whose first words, up to a flag, are the values of `--name`: `FILE --bundle B` is `--items FILE --bundle B`."""
    words = list(arguments)
    return words if not words or words[0].startswith("-") else [f"--{name}", *words]


def peek(name: str, arguments: Sequence[str] | None = None, *, stage: str | None = None, run_dir: Path) -> Any:
    """The value of one setting, as text or as YAML has it, before the others can be parsed; None where nothing names it.

    run_dir: where the stage's last settings lie unless `--run_dir` names another.
    """
    arguments = _with_underscores(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag in {name, "config", "run_dir"}:
        parser.add_argument(f"--{flag}", nargs="?", const=None)
    flags = vars(parser.parse_known_args(list(arguments))[0])
    if flags.get(name) is not None:
        return flags[name]
    if flags.get("config") is not None:
        return _read_yaml(_config_file(Path(flags["config"]))).get(name)
    base = _settings_file(Path(flags.get("run_dir") or run_dir), stage, overwrite=True) if stage else None
    return base[1].get(name) if base else None


def settings_of(kind: type) -> list[Setting]:
    """The fields of a dataclass that a user can set."""
    hints = get_type_hints(kind)
    settings = []
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        help_text, rare = field.metadata.get("help", ""), bool(field.metadata.get("rare", False))
        choices = tuple(field.metadata.get("choices", ()))
        settings.append(Setting(field.name, hints[field.name], default, help_text, rare, choices))
    return settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `--help` lists what there is.")


def _parser(settings: Mapping[str, Setting], refused: Mapping[str, str]) -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config")
    for name, setting in settings.items():
        several = _is_list(setting.kind)
        nargs = "*" if several else "?" if _holds(setting.kind, bool) else None
        action = _Convert if not several else _ConvertAll
        parser.add_argument(f"--{name}", nargs=nargs, action=action, setting=setting)
    parser.parse_args = _refusing_unknown(parser, [*settings, "config"], refused)  # type: ignore[method-assign]
    return parser


class _Convert(argparse.Action):
    def __init__(self, *args: Any, setting: Setting, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.setting = setting

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, checked(self.setting, True if values is None else values))


class _ConvertAll(_Convert):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        words = values if values or not _holds(self.setting.kind, type(None)) else None
        setattr(namespace, self.dest, checked(self.setting, words))


def _refusing_unknown(parser: _Parser, names: Collection[str], refused: Mapping[str, str]) -> Any:
    def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
        for position, word in enumerate(arguments):
            if word == "--config" and position + 1 == len(arguments):
                raise InputError("--config needs a YAML file after it.")
            if word.startswith("--") and not _is_number(word):
                _refuse_unknown(word.removeprefix("--").partition("=")[0], names, refused, "--")
        known, rest = parser.parse_known_args(list(arguments))
        if rest:
            raise InputError(f"{rest[0]!r} belongs to no flag; flags are written `--name value`.")
        return known

    return parse_args


def _refuse_unknown(name: str, names: Collection[str], refused: Mapping[str, str], prefix: str) -> None:
    if name in refused:
        raise InputError(f"{prefix}{name} cannot be set here: {refused[name].rstrip('.')}; leave it out.")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; the nearest one is {prefix}{near[0]}" if near else ""
        raise InputError(f"{prefix}{name} is not a setting{hint}; `--help-all` lists what there is.")


def _with_underscores(arguments: Sequence[str]) -> list[str]:
    """`--run-dir X` means `--run_dir X`."""
    words = []
    for word in arguments:
        name, equals, value = word.partition("=")
        is_flag = word.startswith("--") and word != HELP_ALL and not _is_number(word)
        words.append("--" + name[2:].replace("-", "_") + equals + value if is_flag else word)
    return words


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


# ---- values


def checked(setting: Setting, value: Any) -> Any:
    """`value`, a flag's words or what YAML holds, as the setting's type; raises InputError naming the setting and what it may be."""
    converted = _converted(setting.kind, value)
    if converted is NOTHING or (setting.choices and converted is not None and converted not in setting.choices):
        wanted = " or ".join(map(str, setting.choices)) if setting.choices else describe(setting.kind)
        if not all(
            _is_plain(each) for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)
        ):
            wanted += " in UTF-8, without zero bytes"
        raise InputError(f"{setting.name} is {_shown(value)}; it must be {wanted}.")
    least, most = (0, GREATEST_SEED) if setting.name == "seed" else (-GREATEST_INTEGER, GREATEST_INTEGER)
    for number in converted if isinstance(converted, list) else [converted]:
        if isinstance(number, int) and not least <= number <= most:
            wanted = f"at least {least}" if number < least else f"at most {most}"
            raise InputError(f"{setting.name} is {number}; it must be {wanted}.")
    return converted


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else json.dumps(value, default=str)


def _converted(kind: Any, value: Any) -> Any:
    """`value` as `kind`; NOTHING where it is none."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        # text is the last resort: `int | str` holds a number where it can
        ordered = sorted(parts, key=lambda part: (part is str, part is not type(None)))
        return next((fit for part in ordered if (fit := _converted(part, value)) is not NOTHING), NOTHING)
    if origin is Literal:
        return next((choice for choice in parts if value == choice or value == str(choice)), NOTHING)
    if origin in (list, tuple):
        return _list_converted(parts[0] if parts else Any, value)
    if kind is dict or origin is dict:
        return _dict_converted(value)
    if kind is type(None):
        return None if value is None or value in ("none", "None", "null") else NOTHING
    return _scalar_converted(kind, value)


def _list_converted(part: Any, value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return NOTHING
    converted = [_converted(part, each) for each in value]
    return NOTHING if any(each is NOTHING for each in converted) else converted


def _dict_converted(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return NOTHING
    return value if isinstance(value, dict) else NOTHING


def _scalar_converted(kind: Any, value: Any) -> Any:
    if isinstance(value, list | dict) or value is None:
        return NOTHING
    if kind is bool:
        return value if isinstance(value, bool) else WORDS.get(str(value).lower(), NOTHING)
    if isinstance(value, bool):
        return NOTHING
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next((each for each in kind if value in (each, each.value, each.name)), NOTHING)
    if kind in (int, float):
        if kind is int and isinstance(value, float):
            return NOTHING
        try:
            return kind(value)  # YAML 1.1 reads 1e-3 as text
        except (ValueError, OverflowError, TypeError):  # a date, which YAML makes by itself, is no number
            return NOTHING
    if not _is_plain(str(value)):
        return NOTHING
    if kind is str:
        return str(value)
    # an empty path would mean the working directory, as when a shell's variable is unset
    return Path(str(value)) if kind is Path and str(value) else NOTHING


def _is_plain(text: str) -> bool:
    """Whether `text` is such as files, databases and terminals take: no zero byte, and no byte of a flag that is no UTF-8."""
    try:
        return b"\0" not in text.encode("utf-8")
    except UnicodeEncodeError:
        return False


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is list or any(_is_list(part) for part in get_args(kind) if get_origin(kind) is not Literal)


def _holds(kind: Any, part: type) -> bool:
    return kind is part or (get_origin(kind) in (Union, types.UnionType) and part in get_args(kind))


def describe(kind: Any) -> str:
    """A type in words: "a whole number", "one of `a`, `b`"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in parts)
    if origin is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in parts)
    if origin is list:
        return "a list of " + describe(parts[0]).removeprefix("a ").removeprefix("an ") + "s"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return names.get(
        kind, "none" if kind is type(None) else "a mapping" if kind is dict or origin is dict else "a value"
    )


# ---- files


def _read_settings(file: Path, settings: Mapping[str, Setting], refused: Mapping[str, str]) -> dict[str, Any]:
    content = _read_yaml(_config_file(file))
    for name in content:
        if name == "env":
            raise InputError(f"--config {file} has `env`, which would change this process; set variables in the shell.")
        _refuse_unknown(str(name), settings, refused, f"--config {file}: ")
    return {name: checked(settings[name], value) for name, value in content.items()}


def _config_file(file: Path) -> Path:
    """`file`, or where there is none the packaged one of that name: configs/sft/demo.yaml is found from everywhere."""
    packaged = PACKAGED.joinpath(*file.parts[1:]) if file.parts[:1] == ("configs",) else PACKAGED / file
    return packaged if not file.exists() and packaged.is_file() else file


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {file} cannot be read ({error.strerror}); give an existing YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"--config {file} is not valid YAML ({' '.join(str(error).split())}).") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"--config {file} holds no settings; write one `name: value` a line.")
    return content


def _settings_of_run(run_dir: Path, stage: str, settings: Mapping[str, Setting], overwrite: bool) -> dict[str, Any]:
    """The last settings of a stage of the run, or else the packaged ones for the run's data set; nothing where there is neither."""
    base = _settings_file(run_dir, stage, overwrite)
    if base is None:
        return {}
    source, content = base
    values = {name: value for name, value in content.items() if name in settings and name != "run_dir"}
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(f"settings: {source}, where no flag says otherwise\n")
        sys.stdout.flush()
    return {name: checked(settings[name], value) for name, value in values.items()}


def _settings_file(run_dir: Path, stage: str, overwrite: bool) -> tuple[str, dict[str, Any]] | None:
    manifest = run_dir / stage / "manifest.json"
    if manifest.is_file():
        recorded = recorded_settings(run_dir, stage, overwrite)
        return (f"the last ones of {run_dir / stage}", recorded) if recorded is not None else None
    described = run_dir / "data" / "dataset.json"
    if not described.is_file():
        return None
    info = read_json(described)
    name = info.get("config", info.get("name")) if isinstance(info, dict) else None
    folder = {"sid": "tokenizer", "embeddings": "tokenizer"}.get(stage, stage)
    packaged = PACKAGED / folder / f"{name}.yaml"
    return (f"configs/{folder}/{name}.yaml", _read_yaml(packaged)) if packaged.is_file() else None


# ---- help


def show_help(kinds: Sequence[type], settings: Sequence[Setting], everything: bool) -> None:
    """Print what the stage does and its settings, the rare ones only when `everything` is asked for."""
    width = min(max(os.get_terminal_size().columns if sys.stdout.isatty() else 100, 60), 120)
    lines = textwrap.wrap((kinds[0].__doc__ or "").strip().split("\n\n")[0], width)
    rare = sum(setting.rare for setting in settings)
    lines += ["", "--config FILE", "    YAML file with any of these settings; flags win."]
    for setting in settings:
        if setting.rare and not everything:
            continue
        lines.append(f"--{setting.name} {_placeholder(setting)}")
        default = "" if setting.default in (dataclasses.MISSING, None) else f" (default: {_default(setting.default)})"
        needed = " (must be given)" if setting.default is dataclasses.MISSING else ""
        indent = "    "
        lines += textwrap.wrap(setting.help + default + needed, width, initial_indent=indent, subsequent_indent=indent)
    if rare and not everything:
        lines += ["", f"{rare} more settings, seldom needed: --help-all"]
    sys.stdout.write("\n".join(lines) + "\n")


def _placeholder(setting: Setting) -> str:
    if setting.choices:
        return "|".join(map(str, setting.choices))
    kinds = [part for part in get_args(setting.kind) if part is not type(None)]
    kind = setting.kind
    if get_origin(kind) in (Union, types.UnionType) and kinds:
        kind = kinds[0]
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return "A [B …]"
    return {int: "N", float: "X", bool: "true|false", Path: "PATH"}.get(kind, "TEXT")


def _default(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value.value if isinstance(value, Enum) else value)

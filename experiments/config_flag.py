"""The flag --config=FILE with its --config.FIELD=VALUE overrides, and the errors of both."""

import difflib
import itertools
import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from remix_jax import config as configs
from remix_jax import plugins
from remix_jax.config import Config
from remix_jax.errors import InputError

NAME = "config"
_HELP = (
    "config file, get_config() -> Config; --config.FIELD=VALUE for any field of remix_jax/config.py"
)


class _WholeNumber(flags.ArgumentParser):
    """1000, 1_000 or 1e3."""

    def parse(self, argument: str | int) -> int:
        try:
            return int(argument)
        except ValueError:
            value = float(argument)
            if value.is_integer():
                return int(value)
            raise ValueError("must be a whole number") from None


class _CommaList(tuple_parser.TupleParser):
    """a.json,b.json; Python's ("a.json", "b.json") is taken too."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def parse(self, argument: object) -> tuple:
        if isinstance(argument, str) and argument[:1] not in ("(", "["):
            parts = [part.strip() for part in argument.split(",")]
        else:
            parts = [part for each in super().parse(argument) for part in _flat(each)]
        return tuple(self._kind(part) for part in parts if part != "")


def _flat(value: object) -> Sequence:
    return value if isinstance(value, tuple | list) else [value]


config_flags.register_flag_parser_for_type(int, _WholeNumber())
config_flags.register_flag_parser_for_type(tuple[str, ...], _CommaList(str))
config_flags.register_flag_parser_for_type(tuple[float, ...], _CommaList(float))


def define(default: str | None = None) -> flags.FlagHolder:
    """Defines the flag."""
    return config_flags.DEFINE_config_file(NAME, default, _HELP)


def value_of(flag: flags.FlagHolder) -> Config:
    """The config that the flags ask for.

    Raises:
      InputError: get_config() gives something else than a Config.
    """
    config = flag.value
    if not isinstance(config, Config):
        raise InputError(f"--config: get_config() gave {type(config).__name__}, not a Config")
    return config


def preset() -> tuple[str, Config]:
    """The config file's name, and what it says before overrides."""
    text = config_flags.get_config_filename(flags.FLAGS[NAME])
    path, *given = text.split(":", 1)
    return pathlib.Path(path).name, plugins.load(f"{path}:get_config", "--config")(*given)


def check(argv: Sequence[str]) -> None:
    """Looks at the config file and the names of the overrides before flags are parsed.

    Raises:
      InputError: no such file or field, with the one that was meant; or the file fails.
    """
    for argument, following in itertools.pairwise([*argv, ""]):
        name, given, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name.partition(".")[0] not in (NAME, f"no{NAME}"):
            continue
        if name == NAME:
            _check_file(value if given else following)
        elif "." in name:
            try:
                configs.field_type(name.partition(".")[2])
            except InputError as error:
                raise InputError(f"--{name}: {error}") from None


def _check_file(text: str) -> None:
    path = pathlib.Path(text.partition(":")[0]).expanduser()
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        meant = difflib.get_close_matches(path.name, beside, 1, 0.7)
        guess = f"; did you mean {path.parent / meant[0]}?" if meant else ""
        raise InputError(f"--config={text}: no such file{guess}")
    get_config = plugins.load(f"{path}:get_config", "--config")
    try:
        get_config(*text.split(":", 1)[1:])
    except Exception as error:  # a config file is a program: it can fail in any way
        raise InputError(f"--config: {plugins.error_line(error)}") from None


def unknown_flag(error: flags.UnrecognizedFlagError) -> str:
    """What to say of a flag that does not exist: perhaps a field was meant."""
    meant = configs.similar_fields(error.flagname) if NAME in flags.FLAGS else []
    guess = f"; did you mean --{NAME}.{' or --config.'.join(meant)}?" if meant else ""
    return f"{error}{guess}"

"""What people type: `name=value` in Hydra's grammar, and the errors of Hydra and OmegaConf in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pharos.errors import InputError
from pharos.families import suggest
from pharos.space import Dimension, parse_dimension

T = TypeVar("T")

# A value may refer to other values, not to the environment: secrets are there, and what a value is gets written down.
OmegaConf.clear_resolver("oc.env")


def expand(text: str) -> str:
    """An override as Hydra wants it: names in full, and URLs quoted, which may have any character in them."""
    name, equals, value = text.partition("=")
    if "://" in value and value[0] not in "'\"[{" and "(" not in value:
        text = f"{name}{equals}{quote(value)}"
    return f"recipe.{text}" if text.startswith("data.") else text


def opened(text: str) -> list[str]:
    """An override as Hydra wants it: what `storage.options` holds is anybody's to name, so it is added there."""
    if text.startswith("storage.options="):
        value = OverridesParser.create().parse_override(text).value()
        if isinstance(value, dict):
            return [f"+storage.options.{key}={quote(item)}" for key, item in value.items()]
    return [f"+{text}" if text.startswith("storage.options.") else text]


def split_sweeps(overrides: Sequence[str]) -> tuple[dict[str, Dimension], list[str]]:
    """Those that are ranges, by name, and the others."""
    swept: dict[str, Dimension] = {}
    plain: list[str] = []
    for text in overrides:
        if "=" not in text:
            raise InputError(f"{text}: not an override; write name=value, such as trials=8")
        # A count to add belongs to --extend; Hydra would read it as a plain number.
        if re.fullmatch(r"trials=\+\d+", text):
            raise InputError(f"{text}: only --extend adds trials; a new sweep takes trials={text.split('+')[1]}")
        dimension = parse_dimension(text)
        if OverridesParser.create().parse_override(text).type != OverrideType.CHANGE:
            raise InputError(f"{text}: only name=value can be given; nothing is added or taken away")
        if text.startswith("family="):
            raise InputError(f"{text}: the family is named by --family")
        if dimension is None:
            plain.append(text)
        elif dimension.name.startswith("recipe."):
            swept[dimension.name] = dimension
        else:
            raise InputError(f"{text}: only the recipe's values can be searched; name it recipe.…")
    return swept, plain


def typed_first_trials(overrides: Sequence[str]) -> list[dict[str, Any]] | None:
    """What `first_trials=[{recipe.NAME: VALUE, …}, …]` says; None if it was not typed.

    The recipe's own values are `{}`: what a trial does not name is at its default.
    """
    for text in overrides:
        if text.startswith("first_trials="):
            value = OverridesParser.create().parse_override(text).value()
            if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
                raise InputError(
                    f"{text}: write first_trials=[{{recipe.NAME: VALUE}}, …]; {{}} stands for the recipe's own values"
                )
            return [{str(name): item for name, item in each.items()} for each in value]
    return None


def value_of(overrides: Sequence[str], name: str, default: Any) -> Any:
    """What was typed last for a name."""
    values = [text.partition("=")[2] for text in overrides if text.startswith(f"{name}=")]
    return values[-1] if values else default


def quote(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str):
        return QuotedString(text=value, quote=Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{quote(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(quote(item) for item in value) + "]"
    return str(value)


def in_one_line(make: Callable[[], T], known: Callable[[], list[str]] = list) -> T:
    """Calls, and turns Hydra's and OmegaConf's errors into ours, with the name that was probably meant."""
    try:
        return make()
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        message = str(cause).strip().split("\n")[0]
        unknown = re.search(r"Could not override '([^']+)'", str(error))
        option = re.search(r"Could not find '(\w+)/([^']+)'", str(error))
        if option:
            files = (Path(__file__).parent / "conf" / option[1]).glob("*.yaml")
            message = f"{option[1]}={option[2]}: {suggest(option[2], sorted(file.stem for file in files))}"
        elif unknown:
            message = f"{unknown[1]}: no such setting; {suggest(unknown[1], known())}"
        else:
            name = getattr(cause, "full_key", None)
            message = f"{name}: {message}" if name and name not in message else message
        raise InputError(message) from None
    except (ValueError, TypeError) as error:
        raise InputError(str(error).strip().split("\n")[0]) from None

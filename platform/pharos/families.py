"""Finds families: a folder with a recipe plus a folder with a search space is a family. None is known by name."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pharos.errors import InputError

if TYPE_CHECKING:
    from pharos.recipe import Recipe

_HOME = Path(__file__).resolve().parents[1]

ROOT = _HOME.parent if _HOME.name == "platform" else _HOME
"""The folder that holds `trainables/` and `search_spaces/`: the checkout, or where a wheel was installed."""


def families() -> list[str]:
    """The names of all families, sorted."""
    return sorted(
        folder.name
        for folder in (ROOT / "search_spaces").glob("*")
        if (folder / "default.yaml").is_file() and (ROOT / "trainables" / folder.name / "recipe.py").is_file()
    )


def load_recipe(family: str) -> Recipe:
    """Imports a family's recipe.

    Raises:
        InputError: There is no such family.
    """
    from pharos.recipe import Recipe  # imports torch, which a command's --help does not need

    module_name = f"trainables.{family}.recipe"
    if importlib.util.find_spec("trainables") is None and str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # a checkout that was not installed: appended, so that it shadows nothing
    try:
        found = importlib.util.find_spec(module_name) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise InputError(f"--family {family}: no such family; {suggest(family, families())}")
    module = importlib.import_module(module_name)
    recipes = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Recipe) and member.__module__ == module_name
    ]
    if len(recipes) != 1:
        raise InputError(f"{module_name} defines {len(recipes)} recipes; it must define exactly one")
    return recipes[0]()


def space_file(family: str, name: str) -> Path:
    """The file of a family's named search space.

    Raises:
        InputError: There is no such space.
    """
    folder = ROOT / "search_spaces" / family
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise InputError(
            f"space={name}: {family} has no such search space; "
            f"{suggest(name, sorted(p.stem for p in folder.glob('*.yaml')))}"
        )
    return path


def suggest(word: str, known: Iterable[str]) -> str:
    """What an error message offers instead of an unknown word."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known) or 'none'}"

"""A report's figures as PNGs for a paper, drawn by Kaleido in the Chromium of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from pharos.errors import InputError, PharosError
from pharos.report.style import LIGHT, Figure, plain, resolve

_WIDTH = 900
_SCALE = 2
_SECONDS = 60
_NO_BROWSER = "--png needs Chromium or Chrome: apt-get install chromium, or BROWSER_PATH=… says where one is"


def draw(figures: Sequence[Figure]) -> dict[str, bytes]:
    """PNGs by file name, one a panel, in the light colours; all of them or an error.

    Raises:
        InputError: Kaleido or a browser is missing.
        PharosError: The browser does not draw them.
    """
    try:
        import kaleido  # noqa: F401 - whether it is there
        from choreographer.errors import BrowserDepsError, ChromeNotFoundError
    except ImportError as error:
        raise InputError(f"--png needs {error.name}: pip install -c constraints.txt -e '.[report]'") from None
    jobs = {}
    for figure in figures:
        for index, panel in enumerate(figure.panels):
            name = figure.id if len(figure.panels) == 1 else f"{figure.id}-{index + 1}"
            jobs[f"{name}.png"] = _specification(figure, panel)
    try:
        return asyncio.run(_draw(jobs)) if jobs else {}
    except (ChromeNotFoundError, BrowserDepsError):
        raise InputError(_NO_BROWSER) from None
    except Exception as error:
        raise PharosError(f"--png: the browser did not draw: {' '.join(str(error).split())[:200]}") from None


async def _draw(jobs: Mapping[str, dict[str, Any]]) -> dict[str, bytes]:
    import kaleido

    # Without MathJax, which would be fetched from a network.
    async with kaleido.Kaleido(timeout=_SECONDS, mathjax=False) as browser:
        return {name: await browser.calc_fig(figure, _options(figure)) for name, figure in jobs.items()}


def _options(figure: Mapping[str, Any]) -> Any:
    layout = figure["layout"]
    return {"format": "png", "width": layout["width"], "height": layout["height"], "scale": _SCALE}


def _specification(figure: Figure, panel: Mapping[str, Any]) -> dict[str, Any]:
    """A panel as it stands alone: with a size, margins and its title."""
    several = len(figure.panels) > 1
    title = f"{figure.title}: {panel['label']}" if panel.get("label") else figure.title
    size = {
        "width": max(_WIDTH if not several else _WIDTH // 2, panel.get("least", 0)),
        "height": figure.height + 60,
        "margin": {"l": 20, "r": 24, "t": 64, "b": 20},
        "title": {"text": plain(title), "x": 0, "xref": "paper", "y": 0.98, "yanchor": "top", "font": {"size": 15}},
    }
    drawn: dict[str, Any] = resolve({"data": panel["data"], "layout": {**panel["layout"], **size}}, LIGHT)
    return drawn

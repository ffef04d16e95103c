"""What a report costs, and whether a browser shows it: `python benchmarks/report.py [SWEEP …]`.

Makes a sweep of 1,000 trials as a driver would have left it, measures how long its report takes and how large it is,
and opens it, and the report of every sweep that is named, in headless Chromium: nothing may be said on the console,
nothing be asked of a network, every figure must be drawn, and no page be wider than its window, in 1400 and 400 pixels,
light and dark. `--shots FOLDER` keeps what Chromium shows. Ends with status 1 if anything is not as it should be.

Needs the packages `.[report]`, selenium, Chromium and its driver (Debian: chromium chromium-driver).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pharos.config import make_plan
from pharos.families import ROOT
from pharos.folders import read_plan, write_plan
from pharos.records import Usage
from pharos.report.write import figures_of
from pharos.storage import Storage
from pharos.study import Study
from pharos.trial import Ending, Outcome

TRIALS = 1000
EPOCHS = 64
MEGABYTES, SECONDS = 8.0, 20.0
WIDTHS = (1400, 400)
THEMES = ("light", "dark")
_RUNGS = (7, 21)
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
_WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
_EMPTY = """return [...document.querySelectorAll('.plot')].filter((plot) => plot.clientWidth < 100
    || !plot.querySelector('.main-svg .trace, .main-svg .contour')).map((plot) => plot.id)"""

# Filters, sorts and opens a trial, and puts all of it back.
_READER = """
const table = document.getElementById('trials'), rows = [...table.tBodies[0].rows];
const choice = document.getElementById('outcome'), words = document.getElementById('words'), right = {};
choice.value = 'pruned'; choice.dispatchEvent(new Event('change'));
right['filter by outcome'] = rows.every((row) => row.hidden === (row.dataset.outcome !== 'pruned'));
choice.value = ''; words.value = '00000'; words.dispatchEvent(new Event('input'));
right['filter by words'] = rows.filter((row) => !row.hidden).length === 1;
words.value = ''; words.dispatchEvent(new Event('input'));
table.tHead.rows[0].cells[2].click();
const values = [...table.tBodies[0].rows].map((row) => row.cells[2].dataset.v).filter(Boolean).map(Number);
right['order'] = values.every((value, index) => !index || values[index - 1] <= value);
table.tHead.rows[0].cells[0].click();
table.querySelector('button.trial').click();
const dialog = document.getElementById('detail');
right['detail'] = dialog.open && dialog.textContent.includes('python platform/train.py --family');
dialog.close();
return right;
"""


def main(arguments: list[str]) -> int:
    """Measures and looks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help="folders of sweeps to open as well")
    parser.add_argument("--trials", type=int, default=TRIALS, help="of the sweep that is made (0: none is)")
    parser.add_argument("--shots", type=Path, help="a folder for screenshots")
    options = parser.parse_args(arguments)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pharos-report-") as scratch:
        folders = [Storage(sweep) for sweep in options.sweeps]
        if options.trials:
            folders.insert(0, make_sweep(Storage(f"{scratch}/tipsy-{options.trials}"), options.trials))
        for index, folder in enumerate(folders):
            target = Path(scratch) / f"{index}-{folder.name}.html"
            seconds = make_report(folder, target)
            size = target.stat().st_size / 1e6
            print(f"{folder.name}: report in {seconds:.1f} s, {size:.2f} MB")
            if seconds > SECONDS or size > MEGABYTES:
                wrong.append(f"{folder.name}: more than {SECONDS:g} s or {MEGABYTES:g} MB")
            wrong += look(target, folder.name, drawn(folder), options.shots)
    print("\n".join(wrong) or "as it should be")
    return 1 if wrong else 0


def make_report(folder: Storage, target: Path) -> float:
    """Types the command; returns how many seconds it took, imports included."""
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "platform/report.py"), folder.root, "--output", str(target)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def drawn(folder: Storage) -> int:
    """How many panels the report must show."""
    _, plan = read_plan(folder.root)
    return sum(len(figure.panels) for group in figures_of(_story(folder, plan)).values() for figure in group)


def _story(folder: Storage, plan: Any) -> Any:
    from pharos.report.story import read_story

    return read_story(folder, plan)


def make_sweep(folder: Storage, trials: int) -> Storage:
    """A sweep of `tipsy` as ASHA leaves it, with numbers drawn by chance about a plausible surface."""
    plan = make_plan("tipsy", [f"trials={trials}", "tracking=none"])
    write_plan(folder, plan)
    rng = random.Random(0)
    study = Study(Path(folder.root), plan.settings.objectives, _sampler)
    study.enqueue(plan.first_trials)
    free_at = dict.fromkeys(range(4001, 4009), 1.8e9)
    for number in range(trials):
        record = study.ask(plan.space, plan.defaults)
        process = min(free_at, key=lambda each: free_at[each])
        began = free_at[process] + rng.uniform(0.2, 1.5)
        floor = 52 + 6 * sum((0.5 - rng.random()) ** 2 * 4 for _ in range(3)) + 4 * abs(record.params["recipe.w_adv"])
        luck = rng.random()
        outcome = Outcome.DIVERGED if luck < 0.03 else Outcome.FAILED if luck < 0.035 else Outcome.COMPLETE
        if outcome == Outcome.COMPLETE and number and rng.random() < 0.75:
            outcome = Outcome.PRUNED
        length = EPOCHS if outcome == Outcome.COMPLETE else rng.choice(_RUNGS)
        for epoch in range(1, length + 1):
            value = floor * (1 + 2.5 / (1 + epoch / 3)) + rng.gauss(0, 1)
            study.report(number, epoch, (value,))
        metrics = {plan.settings.objectives.first.metric: value, **{f"loss/{i}": rng.random() for i in range(20)}}
        free_at[process] = began + length * rng.uniform(0.6, 0.8)
        ending = Ending(
            outcome,
            "" if outcome == Outcome.COMPLETE else f"rung {length}: 14th of 20, the best 6 go on",
            length,
            metrics,
            free_at[process] - began,
            process=process,
            started_at=began,
            ended_at=free_at[process],
        )
        study.tell(number, ending)
    seconds = max(free_at.values()) - 1.8e9
    study.set_usage(Usage(seconds, seconds * len(free_at)))
    study.close()
    return folder


def _sampler(known: int) -> Any:
    import optuna

    return optuna.samplers.RandomSampler(known)


def look(page: Path, name: str, panels: int, shots: Path | None) -> list[str]:
    """Opens a page in every width and theme; returns what is not as it should be."""
    wrong = []
    for width in WIDTHS:
        for theme in THEMES:
            with browser(width, theme) as driver:
                started = time.monotonic()
                driver.get(page.as_uri())
                found = _wait_for(driver, panels)
                print(f"  {width} px, {theme}: {found} panels in {time.monotonic() - started:.1f} s")
                what = f"{name}, {width} px, {theme}"
                if found != panels:
                    wrong.append(f"{what}: {found} of {panels} panels drawn")
                wrong += [f"{what}: {each}" for each in use(driver, theme)]
                wrong += [f"{what}: {each} is empty" for each in driver.execute_script(_EMPTY)]
                if (wider := driver.execute_script(_WIDER)) > 0:
                    wrong.append(f"{what}: {wider} pixels wider than the window")
                wrong += [f"{what}: console: {entry['message']}" for entry in driver.get_log("browser")]
                wrong += [f"{what}: asks for {url}" for url in _asked(driver) if not url.startswith(("file:", "data:"))]
                if shots:
                    shots.mkdir(parents=True, exist_ok=True)
                    _shoot(driver, width, shots / f"{name}-{width}-{theme}.png")
    return wrong


def use(driver: Any, theme: str) -> list[str]:
    """Does what a reader does: another theme and back, a filter, another order, a look at a trial."""
    wrong = []
    background = "return document.querySelector('.plot .main-svg').style.background"
    before = driver.execute_script(background)
    for each in ({"light": "dark", "dark": "light"}[theme], theme):
        _set_theme(driver, each)
        time.sleep(2)
    if not before or driver.execute_script(background) != before:
        wrong.append("figures do not follow the theme")
    found = driver.execute_script(_READER)
    wrong += [name for name, is_right in found.items() if not is_right]
    return wrong


def _set_theme(driver: Any, theme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@contextmanager
def browser(width: int, theme: str) -> Iterator[Any]:
    """A Chromium of its own, with an empty profile."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    with tempfile.TemporaryDirectory(prefix="pharos-chromium-") as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},1000"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver: Any = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
        try:
            # A headless window is never narrower than 500 pixels; what it shows can be.
            size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            _set_theme(driver, theme)
            driver.get("about:blank")
            driver.get_log("performance")  # of the browser's own first page
            yield driver
        finally:
            driver.quit()


def _wait_for(driver: Any, panels: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = driver.execute_script("return document.body.dataset.drawn")
        if done is not None:
            break
        time.sleep(0.1)
    found: int = driver.execute_script("return document.querySelectorAll('.plot .main-svg:first-child').length")
    return found


def _asked(driver: Any) -> list[str]:
    """The addresses of all requests."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def _shoot(driver: Any, width: int, path: Path) -> None:
    import base64

    height = driver.execute_script("return document.documentElement.scrollHeight")
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    time.sleep(0.5)
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

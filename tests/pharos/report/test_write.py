"""The whole page: what is in it, that nothing breaks it, and that it asks for nothing."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from made_sweeps import fates

from pharos.errors import InputError
from pharos.folders import read_plan
from pharos.pictures import png
from pharos.report import write
from pharos.report.write import write_report
from pharos.storage import Storage
from pharos.trial import Outcome

HOSTILE = "</script><img src=x onerror=alert(1)> & \"quoted\" 'too' {{ 7 * 7 }}"
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """A page, read strictly: every element that is opened is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.scripts, self.asked, self.tags, self.text = [], {}, [], [], []
        self._open = []
        self._script = None
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        self.asked += [found[name] for name in ("src", "href", "action", "srcset", "poster") if name in found]
        if tag == "script":
            self._script = found.get("id", f"script {len(self.scripts)}")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self._script = None

    def handle_data(self, data):
        if self._script:
            self.scripts[self._script] = data
        else:
            self.text.append(data)

    def data(self, name):
        return json.loads(self.scripts[name])


@pytest.fixture(autouse=True)
def _a_small_plotly(monkeypatch):
    """Five megabytes that these tests do not look into; one of them takes the true ones."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* Plotly */")


def report(folder, output=None, **options):
    path, _ = write_report([read_plan(folder.root)], output, **options)
    return Page(open(path).read())  # noqa: PTH123


def test_the_page_holds_every_figure_with_its_data_once(sweeps):
    page = report(sweeps.make(fates(40)))
    plots = [name for name in page.ids if name.startswith("plot-")]
    drawn = page.data("figures")
    assert [each["id"] for each in drawn] == plots
    for name in ("history", "importance", "parallel", "slices", "curves", "rungs", "timeline", "hours", "contours"):
        assert f"plot-{name}-0" in plots
        assert f"figure-{name}" in page.ids
    assert all(trace for each in drawn for trace in each["panel"]["data"])
    assert len(page.ids) == len(set(page.ids))


def test_the_page_asks_for_nothing_and_its_browser_would_refuse_it(sweeps):
    page = report(sweeps.make(fates(12)))
    assert page.asked
    assert all(each.startswith(("#", "data:")) for each in page.asked)
    styles = " ".join(page.text)
    assert "@import" not in styles
    assert not re.search(r"url\((?!data:)", styles)
    policies = [found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none';")
    assert "http" not in policies[0]


def test_plotly_leaves_room_in_eight_megabytes_and_does_not_end_its_script(monkeypatch):
    monkeypatch.undo()  # of the small Plotly
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs()
    assert 1e6 < len(plotly) < 7e6
    assert "</script" not in plotly.lower()


def test_no_text_of_a_sweep_becomes_html(sweeps):
    folder = sweeps.make([*fates(4), (Outcome.FAILED, 1, (0.5,))], reason=HOSTILE)
    page = report(folder)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    assert HOSTILE in " ".join(page.text)
    assert page.data("details")["trials"]["00004"]["reason"] == HOSTILE


def test_a_secret_of_the_environment_is_in_no_report(sweeps, monkeypatch):
    folder = sweeps.make(
        [*fates(3), (Outcome.FAILED, 1, (0.5,))], reason="no access with hunter2hunter2 to s3://u:pw@h/b"
    )
    monkeypatch.setenv("SOME_API_KEY", "hunter2hunter2")
    path, _ = write_report([read_plan(folder.root)])
    text = Storage(folder.root).read_bytes("report/index.html").decode()
    assert path == folder.path("report", "index.html")
    assert "no access with *** to s3://***@h/b" in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "ends",
    [
        [],
        [(Outcome.RUNNING, 2, (0.5,))],
        [(Outcome.COMPLETE, 4, (0.5,))],
        [(Outcome.FAILED, 0, (0.5,))] * 3,
        [(Outcome.DIVERGED, 2, (0.5,))] * 12,
        [(Outcome.COMPLETE, 4, (0.5,))] * 12,
        [(Outcome.COMPLETE, 4, (0.0,))] * 12,
        [(Outcome.COMPLETE, 4, (1e300 * (-1) ** n,)) for n in range(12)],
        [*fates(6), (Outcome.PAUSED, 1, (0.3,)), (Outcome.RUNNING, 1, (0.4,)), (Outcome.INTERRUPTED, 2, (0.4,))],
    ],
    ids=["empty", "running", "one", "failed", "diverged", "alike", "zero", "huge", "under way"],
)
def test_a_sweep_in_any_state_has_a_report(sweeps, ends):
    page = report(sweeps.make(ends))
    figures = page.data("figures")
    text = " ".join(page.text)
    assert ("Not finished" in text) == (not ends or any(not outcome.is_final for outcome, *_ in ends))
    assert len(page.data("details")["trials"]) == len(ends)
    if not any(outcome == Outcome.COMPLETE for outcome, *_ in ends):
        assert "was completed" in text
    assert all(each["panel"]["data"] for each in figures)


def test_values_that_are_no_numbers_are_gaps(sweeps):
    def lie(study):
        study.report(12, 2, (float("nan"),))
        study.report(12, 3, (float("inf"),))

    page = report(sweeps.make([*fates(12), (Outcome.RUNNING, 1, (0.5,))], act=lie))
    assert None in next(e for e in page.data("figures") if e["id"] == "plot-curves-0")["panel"]["data"][0]["y"][:-1]
    assert "NaN" not in page.scripts["figures"]
    assert "Infinity" not in page.scripts["figures"]


def test_the_best_trial_s_pictures_are_in_the_page(sweeps):
    import torch

    folder = sweeps.make(fates(6))
    _, stories = write_report([read_plan(folder.root)])
    best = f"{stories[0].best.number:05d}"
    folder.write_bytes(f"trials/{best}/pictures/val%2Fpose.png", png(torch.rand(3, 4, 4)))
    folder.write_bytes("trials/00099/pictures/other.png", png(torch.rand(3, 4, 4)))
    page = report(folder)
    assert [found["alt"] for tag, found in page.tags if tag == "img"] == ["val/pose"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [(None, "toy-sweep/report/index.html"), ("out/a.html", "out/a.html"), ("out", "out/index.html")],
)
def test_it_goes_where_it_is_asked_to(sweeps, output, expected):
    folder = sweeps.make(fates(3))
    where = output and str(sweeps.home / output)
    path, _ = write_report([read_plan(folder.root)], where)
    assert path == str(sweeps.home / expected)
    assert Storage(str(sweeps.home)).exists(expected)
    assert not list(sweeps.home.rglob("*.tmp"))


def test_a_sweep_in_a_store_has_its_report_there(sweeps):
    local = sweeps.make(fates(5))
    MemoryFileSystem.store.clear()
    store = Storage("memory://bucket/toy-sweep")
    for name in local.sizes():
        store.write_bytes(name, local.read_bytes(name))
    plan = read_plan(local.root)[1]
    path, _ = write_report([(local, plan)], "memory://bucket/toy-sweep/report/index.html")
    assert path == store.path("report", "index.html")
    assert store.read_bytes("report/index.html").startswith(b"<!DOCTYPE html>")


def test_without_its_packages_it_says_what_to_install_and_writes_nothing(sweeps, monkeypatch):
    folder = sweeps.make(fates(3))
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"a report needs plotly.*pip install .*\[report\]"):
        write_report([read_plan(folder.root)])
    assert not folder.exists("report")


def test_without_a_browser_png_says_what_to_install_and_writes_nothing(sweeps, monkeypatch):
    folder = sweeps.make(fates(3))
    monkeypatch.setenv("BROWSER_PATH", str(sweeps.home / "no-browser"))
    with pytest.raises(InputError, match="needs Chromium or Chrome"):
        write_report([read_plan(folder.root)], pngs=True)
    assert not folder.exists("report")


def test_pngs_lie_beside_the_page(sweeps, monkeypatch):
    asked = []

    def draw(figures):
        asked.extend(figures)
        return {"history.png": b"PNG"}

    monkeypatch.setattr(write.png, "draw", draw)
    folder = sweeps.make(fates(6))
    write_report([read_plan(folder.root)], pngs=True)
    assert folder.read_bytes("report/history.png") == b"PNG"
    assert {"history", "hours"} <= {figure.id for figure in asked}


def test_several_sweeps_stand_side_by_side(sweeps):
    folders = [sweeps.make(fates(9, seed), name=f"toy-{seed}") for seed in range(3)]
    path, _ = write_report([read_plan(folder.root) for folder in folders])
    assert path == folders[0].path("report", "comparison.html")
    page = Page(folders[0].read_bytes("report/comparison.html").decode())
    over_trials, over_hours = page.data("figures")
    assert [trace["name"] for trace in over_trials["panel"]["data"]] == ["toy-0", "toy-1", "toy-2"]
    assert over_hours["panel"]["data"][0]["x"] != over_trials["panel"]["data"][0]["x"]
    assert "different" not in " ".join(page.text)


def test_sweeps_of_different_objectives_are_not_compared(sweeps):
    one = sweeps.make(fates(4), name="a")
    other = sweeps.make(fates(4), ["objective={metric: error, mode: max}"], name="b")
    page = Page(open(write_report([read_plan(one.root), read_plan(other.root)])[0]).read())  # noqa: PTH123, SIM115
    assert page.data("figures") == []
    assert "cannot be compared: a: min error; b: max error" in " ".join(page.text)

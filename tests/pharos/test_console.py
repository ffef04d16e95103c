"""What a person sees: a line an event, a table that fits any terminal, and what to type next."""

import io
import re
from types import SimpleNamespace

import hypothesis
import pytest
from hypothesis import strategies
from rich.cells import cell_len
from rich.console import Console as Terminal

from pharos.console import Console, clock, closing, progress
from pharos.live import LiveConsole, cut, make_console, short_names
from pharos.records import TrialRecord, Usage, best_record, count_outcomes
from pharos.settings import Settings
from pharos.trial import Outcome, Report


def record(number, outcome=Outcome.COMPLETE, **values):
    defaults = {
        "params": {"recipe.optim.lr": 0.00123456, "recipe.kind": "plain"},
        "curve": {1: (0.9,), 2: (0.5,)},
        "values": (0.5,) if outcome == Outcome.COMPLETE else None,
        "fidelity": 2,
        "seconds": 10.0,
    }
    return TrialRecord(number, outcome=outcome, **{**defaults, **values})


class Sweep:
    """As a console sees it: records, and what follows from them."""

    def __init__(self, records, slots, settings):
        self.name = "toy-2026-01-01-abcd"
        self.settings = settings
        self.objectives = settings.objectives
        self.interrupted = False
        self.slots = slots
        self.usage = Usage()
        self.plan = SimpleNamespace(space=[1, 2, 3], is_paper_trial=lambda params: params.get("recipe.kind") == "paper")
        self.study = self
        self.records = {r.number: r for r in records}

    def max_fidelity(self, record):
        return 4

    def having(self, outcome):
        return [number for number, record in self.records.items() if record.outcome == outcome]

    @property
    def counts(self):
        return count_outcomes(self.records)

    @property
    def running(self):
        return self.counts[Outcome.RUNNING]

    @property
    def search(self):
        return SimpleNamespace(
            best=best_record(self.records, self.objectives),
            left=self.settings.trials - len(self.records),
            seconds=sum(record.seconds for record in self.records.values() if record.outcome.is_final),
        )


def make_sweep(*records, trials=16, slots=2, objective=None, **settings):
    objective = objective or {"metric": "error", "mode": "min"}
    return Sweep(records, slots, Settings(family="toy", trials=trials, objective=objective, **settings))


@pytest.fixture
def lines(capsys):
    """The plain lines so far, without their times; each call gives the new ones."""

    def read():
        out, err = capsys.readouterr()
        assert out == ""  # standard output is for results
        read = err.splitlines()
        assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in read)
        return [line[20:] for line in read]

    return read


def test_a_sweep_is_announced_in_one_line(lines):
    Console().start(make_sweep(), 2)
    assert lines() == ["sweep toy-2026-01-01-abcd: 16 trials, 2 at a time, 3 dimensions, min error, scale=small"]


def test_a_sweep_that_goes_on_says_how_much_is_done(lines):
    Console().start(make_sweep(record(0), record(1, Outcome.INTERRUPTED)), 1)
    assert "16 trials (1 done), 1 at a time" in lines()[0]


def test_a_trial_has_a_line_at_its_start_and_one_at_its_end(lines):
    console = Console()
    first = record(0, Outcome.RUNNING, curve={}, fidelity=0)
    sweep = make_sweep(first)
    console.start(sweep, 1)
    lines()
    console.started(first)
    console.reported(first, Report(1, {"error": 0.9}, 1.0))
    assert lines() == ["trial 00000 starts: optim.lr=0.001235 kind=plain"]
    first.outcome, first.fidelity, first.values = Outcome.COMPLETE, 4, (0.25,)
    console.ended(first)
    assert re.fullmatch(
        r"trial 00000 complete at 4/4 in 10s: error=0\.25, best 0\.25 \(00000\); 1/16 trials, 0s, about 1m15s left",
        lines()[0],
    )


def test_a_trial_that_goes_on_from_its_checkpoint_says_so(lines):
    Console().started(record(3, Outcome.RUNNING))
    assert lines() == ["trial 00003 goes on: optim.lr=0.001235 kind=plain"]


def test_a_failure_shows_the_last_line_of_its_reason_and_no_best(lines):
    console = Console()
    failed = record(
        7, Outcome.FAILED, reason="Traceback ...\n  File x\nValueError: broken head\n", curve={}, fidelity=0
    )
    console.start(make_sweep(failed), 1)
    lines()
    console.ended(failed)
    (line,) = lines()
    assert line.startswith("trial 00007 failed at 0/4 in 10s: error=-; ValueError: broken head; 1/16 trials")
    assert "best" not in line


def test_a_pruned_trial_shows_its_value_and_not_itself_as_the_best(lines):
    console = Console()
    pruned, best = record(1, Outcome.PRUNED, curve={1: (0.125,)}, fidelity=1), record(0)
    console.start(make_sweep(best, pruned), 1)
    lines()
    console.ended(pruned)
    assert "trial 00001 pruned at 1/4 in 10s: error=0.125, best 0.5 (00000)" in lines()[0]


def test_a_line_is_one_line_and_changes_no_colours(lines):
    Console().note("one\r\ntwo \x1b[31mred\x1b[0m \x1b]0;title\x07end\x00\u2028")
    assert lines() == ["one two red end"]


def test_reports_have_a_line_only_where_nothing_else_was_said_for_long(lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pharos.console.time.monotonic", lambda: now[0])
    console, running = Console(), record(3, Outcome.RUNNING)
    console.start(make_sweep(running), 1)
    lines()
    for _ in range(240):
        now[0] += 10.0
        console.reported(running, Report(2, {"error": 0.5}, 1.0))
    said = lines()
    assert len(said) == 3  # in 40 minutes
    assert said[0].startswith("trial 00003 at 2/4: error=0.5, 1 running; 0/16 trials, 10m10s")


def draw(sweep, width=60, height=24):
    """The live table's lines in a terminal of that size."""
    out = io.StringIO()
    terminal = Terminal(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console = LiveConsole(terminal)
    if sweep is not None:
        console.take_up(sweep)
    terminal.print(console)
    return out.getvalue().splitlines()


def test_the_table_fits_sixty_columns_with_five_hundred_trials():
    outcomes = [outcome for outcome in Outcome if outcome != Outcome.RUNNING]
    long = {f"recipe.very.long.name{i}": 0.123456789 for i in range(12)}
    records = [record(n, outcomes[n % len(outcomes)], params=long) for n in range(490)]
    records += [record(n, Outcome.RUNNING) for n in range(490, 500)]
    records[1].params = {"recipe.kind": "paper"}
    rows = draw(make_sweep(*records, trials=600))
    assert max(map(len, rows)) <= 60
    assert len(rows) <= 23
    text = "\n".join(rows)
    assert all(f" {n:05d}  running " in text for n in range(490, 500))  # all that run
    assert all(f"{n:05d}" in text for n in range(486, 490))  # and those that ended last
    assert rows[2].startswith("best   0")
    assert rows[3].startswith("paper  00001 ")
    assert "00002" not in text
    assert rows[-4].startswith("10 running, ")
    done = sum(each.outcome.is_final for each in records)
    assert done < 490  # interrupted and paused ones are not
    assert f"{done}/600 trials" in rows[-1]


NAMES = ["error", "a.very_long.name_of_a.metric", "größe", "誤差"]
VALUES = [
    0.123456789,
    -1.5e-300,
    7,
    "plain",
    "a very long value " * 9,
    "line\nbreak",
    "\x1b[31mred",
    "[bold]x[/nonsense]",
    "漢字" * 9,
    True,
]


@hypothesis.given(
    width=strategies.integers(12, 250),
    height=strategies.integers(1, 60),
    running=strategies.integers(0, 70),
    ended=strategies.integers(0, 60),
    metrics=strategies.integers(1, 4),
    dims=strategies.lists(
        strategies.tuples(
            strategies.sampled_from(["lr", "optim.lr", "x" * 40, "größe", "漢字"]), strategies.sampled_from(VALUES)
        ),
        max_size=9,
    ),
    name=strategies.sampled_from(["toy-2026-01-01-abcd", "n" * 90, "漢字" * 30]),
)
@hypothesis.settings(max_examples=300)
def test_the_table_fits_any_terminal_and_always_says_how_far_it_is(
    *, width, height, running, ended, metrics, dims, name
):
    outcomes = [outcome for outcome in Outcome if outcome != Outcome.RUNNING]
    params = {
        f"recipe.{index}.{key}" if index % 2 else f"recipe.{key}": value for index, (key, value) in enumerate(dims)
    }
    values = tuple(VALUES[:1] * metrics)
    records = [
        record(
            n, Outcome.RUNNING if n >= ended else outcomes[n % len(outcomes)], params=dict(params), curve={2: values}
        )
        for n in range(ended + running)
    ]
    for each in records:
        each.values = values if each.outcome == Outcome.COMPLETE else None
    sweep = make_sweep(
        *records, trials=200, objective=[{"metric": metric, "mode": "min"} for metric in NAMES[:metrics]]
    )
    sweep.name = name
    rows = draw(sweep, width, height)
    assert max(map(cell_len, rows)) <= width
    assert 1 <= len(rows) <= max(1, min(height - 1, 24))
    done = sum(each.outcome.is_final for each in records)
    assert f"{done}/200 t" in rows[-1]
    assert "\x1b" not in "".join(rows)
    shown = [row for row in rows if " running " in row]
    if len(rows) > 7 and width >= 40:
        hidden = [int(row.split()[1]) for row in rows if row.endswith(" more run")]
        assert len(shown) + sum(hidden) == running


def test_the_table_marks_the_best_and_the_papers_values_and_counts_the_outcomes():
    paper = record(0, params={"recipe.kind": "paper", "recipe.lr": 0.125})
    rows = draw(make_sweep(paper, record(1, values=(0.25,)), record(2, Outcome.DIVERGED)), 100)
    assert rows[0].split() == ["toy-2026-01-01-abcd", "min", "error"]
    assert rows[1].split() == ["trial", "state", "epoch", "error", "optim.lr", "kind", "recipe.lr"]
    assert [row.split()[:5] for row in rows[2:5]] == [
        ["best", "00001", "complete", "━━━━━─────", "2/4"],
        ["paper", "00000", "complete", "━━━━━─────", "2/4"],
        ["00002", "diverged", "━━━━━─────", "2/4", "0.5"],
    ]
    assert rows[2].split()[5:] == ["0.25", "0.001235", "plain"]
    assert rows[3].split()[5:] == ["0.5", "paper", "0.125"]
    assert rows[5] == "2 complete, 1 diverged"


def test_the_table_follows_what_happens():
    sweep = make_sweep()
    out = io.StringIO()
    terminal = Terminal(file=out, width=80, height=24, force_terminal=True, color_system=None)
    console = LiveConsole(terminal)
    console.start(sweep, 2)
    try:
        for number in range(40):
            sweep.records[number] = each = record(
                number, Outcome.RUNNING, params={"recipe.kind": "paper" if number == 3 else "x"}
            )
            console.started(each)
            each.outcome, each.values = Outcome.COMPLETE, (1.0 + number,)
            console.ended(each)
    finally:
        console.stop()
    out.truncate(0)
    terminal.print(console)
    rows = out.getvalue().splitlines()
    assert [row.split()[:2] for row in rows if row.startswith(("best", "paper"))] == [
        ["best", "00000"],
        ["paper", "00003"],
    ]
    assert " 00039  complete" in rows[-3]
    assert "40/16 trials" in rows[-1]


def test_a_live_terminal_of_few_lines_keeps_the_last():
    out = io.StringIO()
    console = LiveConsole(Terminal(file=out, width=60, height=6, force_terminal=True, color_system=None))
    console.start(make_sweep(*[record(n, Outcome.RUNNING) for n in range(20)], trials=100), 20)
    console.stop()
    drawn = out.getvalue()
    assert "0/100 trials" in drawn
    assert "..." not in drawn  # rich's sign that it had to cut
    assert drawn.count("00000") == 0


def test_what_is_no_news_has_no_line_above_the_table_and_a_failure_has_one():
    out = io.StringIO()
    console = LiveConsole(Terminal(file=out, width=100, height=24, force_terminal=False))
    console._sweep = make_sweep()
    console.ended(record(0))
    console.ended(record(1, Outcome.PRUNED))
    assert out.getvalue() == ""
    console.ended(record(2, Outcome.FAILED, reason="ValueError: broken head"))
    assert "trial 00002 failed at 2/4" in out.getvalue()
    assert "ValueError: broken head" in out.getvalue()


def test_square_brackets_in_values_are_shown_and_no_markup():
    odd = record(0, params={"recipe.x": "[b]loud[/nons]"})
    assert "[b]loud[/nons]" in "\n".join(draw(make_sweep(odd), 120))


@pytest.mark.parametrize(
    ("text", "width", "shorter"),
    [
        ("abcdefgh", 8, "abcdefgh"),
        ("abcdefgh", 7, "abc…fgh"),
        ("abcdefgh", 6, "ab…fgh"),
        ("漢字漢字", 6, "漢…字"),
        ("abcdefgh", 2, "ab"),
        ("abcdefgh", 0, ""),
    ],
)
def test_what_is_too_long_loses_its_middle(text, width, shorter):
    assert cut(text, width) == shorter


def test_names_are_as_short_as_they_can_be():
    names = ["recipe.optim.lr", "recipe.critic.optim.lr", "recipe.w_90", "lr"]
    assert short_names(names) == {
        "recipe.optim.lr": "recipe.optim.lr",
        "recipe.critic.optim.lr": "critic.optim.lr",
        "recipe.w_90": "w_90",
        "lr": "lr",
    }


def test_before_it_starts_the_table_is_empty():
    assert draw(None) == []


def test_a_pipe_gets_plain_lines_and_a_terminal_a_table(monkeypatch):
    assert type(make_console(json_only=False)) is Console
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True, write=len, flush=lambda: None))
    assert type(make_console(json_only=False)) is LiveConsole
    assert type(make_console(json_only=True)) is Console


def test_the_time_left_follows_from_the_trials_so_far(monkeypatch):
    monkeypatch.setattr("pharos.console.time.monotonic", lambda: 100.0)
    running = record(2, Outcome.RUNNING, seconds=4.0, fidelity=2)  # 4 s more, for the other half
    sweep = make_sweep(record(0, seconds=8.0), record(1, seconds=12.0), running, trials=5, slots=2)
    assert progress(sweep, 40.0) == "2/5 trials, 1m00s, about 12s left"  # (2 x 10 s + 4 s) in two slots
    sweep.interrupted = True
    assert progress(sweep, 40.0) == "2/5 trials, 1m00s"
    assert progress(make_sweep(running), 40.0) == "0/16 trials, 1m00s"


def test_a_budget_that_ends_before_the_last_trial_is_what_is_left(monkeypatch):
    monkeypatch.setattr("pharos.console.time.monotonic", lambda: 100.0)
    sweep = make_sweep(record(0, seconds=3600.0), trials=5, slots=2, hours=1.5)
    sweep.usage = Usage(3600.0, 7200.0)
    assert progress(sweep, 40.0) == "1/5 trials, 1m00s, 30m00s left of hours=1.5"
    sweep = make_sweep(record(0, seconds=3600.0), trials=5, slots=2, gpu_hours=3)
    sweep.usage = Usage(3600.0, 7200.0)
    assert progress(sweep, 40.0) == "1/5 trials, 1m00s, 30m00s left of gpu_hours=3"
    sweep = make_sweep(record(0, seconds=36.0), trials=5, slots=2, hours=1.5)
    assert progress(sweep, 40.0) == "1/5 trials, 1m00s, about 1m12s left"


TWO = [{"metric": "error", "mode": "min"}, {"metric": "size", "mode": "max"}]


def test_several_objectives_and_constraints_are_announced_shown_and_each_has_a_column(lines):
    best = record(0, values=(0.25, 7.0), curve={2: (0.25, 7.0)})
    sweep = make_sweep(
        best, record(1, Outcome.PAUSED, curve={1: (0.5, 3.0)}), objective=TWO, constraints={"memory": "<= 20"}
    )
    console = Console()
    console.start(sweep, 1)
    assert lines()[0].endswith("3 dimensions, min error, max size, memory <= 20, scale=small")
    console.ended(best)
    assert "trial 00000 complete at 2/4 in 10s: error=0.25 size=7, best 0.25 7 (00000); 1/16 trials" in lines()[0]
    rows = draw(sweep, 100)
    assert rows[0].endswith("min error, max size")
    assert rows[1].split()[:5] == ["trial", "state", "epoch", "error", "size"]
    assert rows[3].split()[:2] == ["00001", "paused"]
    assert rows[3].split()[4:6] == ["0.5", "3"]


def summary(**changes):
    best = {
        "trial": "00003",
        "outcome": "complete",
        "fidelity": 4,
        "values": {"error": 0.123456},
        "params": {"recipe.lr": 0.01, "recipe.kind": "noisy", "recipe.noise": 0.5},
    }
    paper = {**best, "trial": "00000", "values": {"error": 0.2}, "params": {"recipe.lr": 0.1, "recipe.kind": "plain"}}
    values = {
        "sweep": "toy-x",
        "objective": {"metric": "error", "mode": "min"},
        "constraints": {},
        "trials": {"complete": 4, "pruned": 1},
        "stopped": None,
        "best": best,
        "paper_values": paper,
        "pareto": None,
        "finalists": None,
        "seconds": 75.0,
    }
    return {**values, **changes}


def test_the_closing_words_set_the_best_beside_the_papers_values():
    assert closing(summary(), "/sweeps/toy-x", 5).splitlines() == [
        "sweep toy-x: 4 complete, 1 pruned; 1m15s",
        "              best (00003)  paper's values (00000)",
        "error         0.1235        0.2",
        "recipe.kind   noisy         plain",
        "recipe.lr     0.01          0.1",
        "recipe.noise  0.5           -",
        "files: /sweeps/toy-x",
        "next:  python platform/train.py --from toy-x",
        "   or: python platform/sweep.py --extend toy-x trials=+5",
    ]


def test_the_closing_words_of_an_unfinished_sweep_say_how_to_go_on():
    text = closing(summary(trials={"complete": 2, "interrupted": 3}), "/s", 5)
    assert "next:  python platform/sweep.py --resume toy-x" in text
    assert "--extend" not in text


def test_the_closing_words_without_a_complete_trial():
    text = closing(summary(best=None, paper_values=None, trials={"failed": 5}), "/s", 5)
    assert "no trial was completed" in text
    assert "paper" not in text


def test_the_closing_words_without_a_complete_trial_that_keeps_the_constraints():
    text = closing(summary(best=None, constraints={"memory": "<= 20"}), "/s", 5)
    assert "no trial was completed within the constraints" in text


@pytest.mark.parametrize(
    ("reason", "ends"),
    [
        (
            "error=0.04 reached stop_at=0.05",
            "next:  python platform/sweep.py --extend toy-x, with more of what stopped it",
        ),
        (
            "different configurations failed at the same place",
            "next:  python platform/sweep.py --resume toy-x",
        ),
    ],
)
def test_the_closing_words_say_why_the_sweep_was_stopped_and_how_it_goes_on(reason, ends):
    lines = closing(summary(trials={"complete": 2, "interrupted": 1}, stopped=reason), "/s", 5).splitlines()
    assert lines[1] == f"stopped: {reason}"
    assert lines[-1] == ends


def test_the_closing_words_show_the_pareto_front():
    front = [
        {"trial": "00003", "values": {"error": 0.125, "size": 9}, "params": {"recipe.lr": 0.01}},
        {"trial": "00001", "values": {"error": 0.25, "size": 4}, "params": {"recipe.lr": 0.1}},
    ]
    pareto = {"front": front, "hypervolume": 1.25, "reference": {"error": 1.0, "size": 10.0}}
    best = {**summary()["best"], "values": front[0]["values"]}
    lines = closing(summary(pareto=pareto, best=best, paper_values=None), "/s", 5).splitlines()
    assert lines[2:4] == ["error         0.125", "size          9"]
    assert lines[7:11] == [
        "Pareto front: 2 trials, hypervolume 1.25 to error=1 size=10",
        "trial  error  size  values",
        "00003  0.125  9     lr=0.01",
        "00001  0.25   4     lr=0.1",
    ]


def test_the_closing_words_without_the_papers_values_have_one_column():
    lines = closing(summary(paper_values=None), "/s", 5).splitlines()
    assert lines[1].split() == ["best", "(00003)"]
    assert lines[2].split() == ["error", "0.1235"]


def test_the_closing_words_say_that_the_papers_values_were_stopped_early():
    paper = {**summary()["paper_values"], "outcome": "diverged", "fidelity": 2}
    assert "0.2 (diverged at 2)" in closing(summary(paper_values=paper), "/s", 5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (61, "1m01s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (90061, "25h01m"),
    ],
)
def test_lengths_of_time_are_for_people(seconds, text):
    assert clock(seconds) == text

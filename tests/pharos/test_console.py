"""What a person sees: a line an event, a table that fits any terminal, and what to type next."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console as Terminal

from pharos.config import Settings
from pharos.console import Console, LiveConsole, clock, closing, make_console, progress
from pharos.study import TrialRecord, Usage, best_record, count_outcomes
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
        self.plan = SimpleNamespace(space=[1, 2, 3])
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
        assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in read)
        return [line[9:] for line in read]

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
        r"trial 00000 complete at 4/4: error=0\.25, best 0\.25 \(00000\); 1/16 trials, 0s, about 1m15s left", lines()[0]
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
    assert line.startswith("trial 00007 failed at 0/4: error=-; ValueError: broken head; 1/16 trials")
    assert "best" not in line


def test_a_pruned_trial_shows_its_value_and_not_itself_as_the_best(lines):
    console = Console()
    pruned, best = record(1, Outcome.PRUNED, curve={1: (0.125,)}, fidelity=1), record(0)
    console.start(make_sweep(best, pruned), 1)
    lines()
    console.ended(pruned)
    assert "trial 00001 pruned at 1/4: error=0.125, best 0.5 (00000)" in lines()[0]


def draw(console, width=60):
    out = io.StringIO()
    Terminal(file=out, width=width, force_terminal=False).print(console._table())
    return out.getvalue().splitlines()


@pytest.fixture
def live():
    def make(sweep):
        console = LiveConsole()
        console._sweep = sweep
        return console

    return make


def test_the_table_fits_sixty_columns_with_five_hundred_trials(live):
    outcomes = [outcome for outcome in Outcome if outcome != Outcome.RUNNING]
    long = {f"recipe.very.long.name{i}": 0.123456789 for i in range(12)}
    records = [record(n, outcomes[n % len(outcomes)], params=long) for n in range(490)]
    records += [record(n, Outcome.RUNNING) for n in range(490, 500)]
    rows = draw(live(make_sweep(*records, trials=600)))
    assert max(map(len, rows)) <= 60
    assert len(rows) <= 20
    text = "\n".join(rows)
    assert all(f"{n:05d}" in text for n in range(490, 500))  # all that run
    assert "00489" in text  # and those that ended last
    assert "00001" not in text
    assert "490/600" not in text  # interrupted ones are not done
    assert "trials," in text


def test_the_table_marks_the_best_and_counts_the_outcomes(live):
    rows = draw(live(make_sweep(record(0), record(1, values=(0.25,)), record(2, Outcome.DIVERGED))), 100)
    assert [row.split()[0] for row in rows[1:4]] == ["00000", "00001*", "00002"]
    assert "2 complete, 1 diverged  best 0.25 (00001)" in rows[4]
    assert all(" 2/4 " in row for row in rows[1:4])
    assert rows[0].split() == ["trial", "state", "epoch", "error", "values"]


def test_more_running_trials_than_rows_still_leave_room(live):
    rows = draw(live(make_sweep(*[record(n, Outcome.RUNNING) for n in range(100)], trials=100)))
    assert 14 <= len(rows) <= 22


def test_square_brackets_in_values_are_shown_and_no_markup(live):
    odd = record(0, params={"recipe.x": "[bold]loud[/nonsense]"})
    assert "[bold]loud[/nonsense]" in "\n".join(draw(live(make_sweep(odd)), 120))


def test_before_it_starts_the_table_is_empty(live):
    assert draw(live(None)) == [""]


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


def test_several_objectives_and_constraints_are_announced_shown_and_each_has_a_column(lines, live):
    best = record(0, values=(0.25, 7.0), curve={2: (0.25, 7.0)})
    sweep = make_sweep(
        best, record(1, Outcome.PAUSED, curve={1: (0.5, 3.0)}), objective=TWO, constraints={"memory": "<= 20"}
    )
    console = Console()
    console.start(sweep, 1)
    assert lines()[0].endswith("3 dimensions, min error, max size, memory <= 20, scale=small")
    console.ended(best)
    assert "trial 00000 complete at 2/4: error=0.25 size=7, best 0.25 7 (00000); 1/16 trials" in lines()[0]
    rows = draw(live(sweep), 100)
    assert rows[0].split() == ["trial", "state", "epoch", "error", "size", "values"]
    assert rows[2].split()[:2] == ["00001", "paused"]
    assert rows[2].split()[-4:-2] == ["0.5", "3"]


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

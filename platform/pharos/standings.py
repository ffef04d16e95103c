"""How finalists did on fresh seeds, and whether the winner really wins.

The best of many noisy trials owes part of its value to luck, so its value in the search flatters it; on fresh seeds,
which nothing was chosen by, it does not. (The trials of a search have one seed in common, so the difference holds what
that seed does to all of them, too, be it good or bad.) Every finalist is trained on the same seeds, and finalists are
compared by their differences on the same seed (paired), as a seed that is bad for one is often bad for the others. All
intervals are Student's t (1908): they suppose that what the seeds add is about normally distributed.

Each finalist's mean has a 95 % interval of its own. The differences to the winner, the one with the best mean, hold
together: with k finalists each has the level 1 - 0.05 / (k - 1) (Bonferroni; Dunn 1961). That is also enough for the
choice of the winner after the fact: the best mean leads all of k - 1 intervals by luck alone with a probability of at
most k * 0.05 / (2 (k - 1)), which is no more than 5 %, and the true best is among the winner and those tied with it
with 97.5 % (comparisons with the best; Hsu 1984).

`summary.json` has under `finalists`:

sweep         the sweep that they come from
seeds         the fresh seeds
metric        the first objective, which the verdict is about
finalists     the best mean first, each with
                trial, params   in that sweep
                runs            its trials here: trial, seed, outcome, values (null: none)
                n               how many of them have values
                missing         how many ended without, by outcome
                infeasible      how many broke a constraint
                values          by objective: search (the value in that sweep), mean, sd, low, high (95 %), and
                                flattery: by how much the search's value is better than the mean
                behind          the winner, paired: pairs, mean, low, high, beaten; above 0: worse. null: the winner
comparisons   how many differences hold together
winner        its trial in that sweep; null: no run has values
wins          whether it is better than every other beyond what chance explains, and finished all its runs
tied          the trials that may be as good as the winner, or better
verdict       all of it in words
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from pharos.plan import SEED, Plan
from pharos.records import TrialRecord
from pharos.search.objective import Objectives
from pharos.trial import trial_id

LEVEL = 0.95


def standings(plan: Plan, records: Mapping[int, TrialRecord]) -> dict[str, Any]:
    """What `summary.json` says of finalists, as far as they are.

    Args:
        plan: A sweep's that `pharos.finalists` has made.
        records: Its trials.
    """
    origin = plan.finalists
    assert origin is not None
    objectives = plan.settings.objectives
    metric = objectives.first.metric
    seeds = list(dict.fromkeys(params[SEED] for params in plan.first_trials))
    rows = [_row(each, plan, records, index) for index, each in enumerate(origin["trials"])]
    # One value is no mean to trust: those that have more come first.
    rows.sort(key=lambda row: (-min(row["n"], 2), _first_loss(objectives, row["values"][metric]["mean"])))
    winner = rows[0] if rows[0]["n"] else None
    comparisons = max(1, len(rows) - 1)
    for row in rows[1:] if winner else []:
        row["behind"] = _behind(row, winner or {}, objectives, comparisons)
    ended = sum(record.outcome.is_final for record in records.values())
    result = {
        "sweep": origin["sweep"],
        "seeds": seeds,
        "metric": metric,
        "finalists": rows,
        "comparisons": comparisons,
        "winner": winner["trial"] if winner else None,
        "wins": False,
        "tied": [row["trial"] for row in rows[1:] if row["n"] and not row["behind"]["beaten"]],
    }
    beaten = [row for row in rows[1:] if row["behind"] and row["behind"]["beaten"]]
    is_over = ended >= len(plan.first_trials)
    result["wins"] = bool(is_over and winner and beaten and not result["tied"] and not _flaws(winner))
    return {**result, "verdict": _verdict(result, ended, len(plan.first_trials))}


def interval(values: Sequence[float], comparisons: int = 1) -> dict[str, float | None]:
    """Mean, standard deviation and the t-interval of the mean; None where there are too few values.

    Args:
        values: One a seed.
        comparisons: So many intervals are to hold together.
    """
    from scipy.special import stdtrit  # the quantile that scipy.stats.t has, without the second that it takes to import

    count = len(values)
    if count < 2:
        return {"mean": values[0] if values else None, "sd": None, "low": None, "high": None}
    mean, deviation = fmean(values), stdev(values)
    margin = float(stdtrit(count - 1, 1 - (1 - LEVEL) / 2 / comparisons)) * deviation / math.sqrt(count)
    return {"mean": mean, "sd": deviation, "low": mean - margin, "high": mean + margin}


def _row(origin: Mapping[str, Any], plan: Plan, records: Mapping[int, TrialRecord], index: int) -> dict[str, Any]:
    """One finalist's runs, and what they come to."""
    objectives = plan.settings.objectives
    mine = plan.first_trials[index :: len((plan.finalists or {})["trials"])]
    runs = [record for _, record in sorted(records.items()) if record.params in mine]
    results = [record.values for record in runs if record.values is not None]
    values = {}
    for column, each in enumerate(objectives):
        searched = origin["values"][each.metric]
        found = interval([result[column] for result in results])
        gain = None if found["mean"] is None else found["mean"] - searched
        flattery = gain if gain is None or each.mode == "min" else -gain
        values[each.metric] = {"search": searched, **found, "flattery": flattery}
    return {
        "trial": origin["trial"],
        "params": origin["params"],
        "runs": [
            {
                "trial": trial_id(record.number),
                "seed": record.params[SEED],
                "outcome": str(record.outcome),
                "values": None if record.values is None else dict(zip(objectives.metrics, record.values, strict=True)),
            }
            for record in runs
        ],
        "n": len(results),
        "missing": dict(Counter(str(r.outcome) for r in runs if r.outcome.is_final and r.values is None)),
        "infeasible": sum(record.values is not None and not record.is_feasible for record in runs),
        "values": values,
        "behind": None,
    }


def _behind(row: Mapping[str, Any], winner: Mapping[str, Any], objectives: Objectives, count: int) -> dict[str, Any]:
    """By how much a finalist is worse than the winner on the seeds that both have."""
    metric = objectives.first.metric
    mine, theirs = (
        {run["seed"]: _first_loss(objectives, run["values"][metric]) for run in each["runs"] if run["values"]}
        for each in (row, winner)
    )
    differences = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    found = interval(differences, count)
    return {
        "pairs": len(differences),
        **{name: found[name] for name in ("mean", "low", "high")},
        "beaten": found["low"] is not None and found["low"] > 0,
    }


def _first_loss(objectives: Objectives, value: float | None) -> float:
    if value is None:
        return math.inf
    return value if objectives.first.mode == "min" else -value


def _flaws(row: Mapping[str, Any]) -> str:
    """What speaks against a finalist besides its mean."""
    runs = len(row["runs"])
    flaws = [f"{count} of its {runs} runs ended {outcome}" for outcome, count in row["missing"].items()]
    if row["infeasible"]:
        flaws.append(f"{row['infeasible']} of its {runs} runs broke a constraint")
    return " and ".join(flaws)


def _verdict(result: Mapping[str, Any], ended: int, wanted: int) -> str:
    """Whether the winner really wins, in words."""
    winner, rows, tied = result["winner"], result["finalists"], result["tied"]
    others = len(rows) - 1
    if ended < wanted:
        leader = f"; trial {winner} leads" if winner else ""
        return f"not decided yet: {ended} of {wanted} runs have ended{leader}"
    if winner is None:
        return "no verdict: no run was completed"
    if not others:
        flaws = _flaws(rows[0])
        return f"trial {winner} has nothing to be compared with" + (f"; {flaws}" if flaws else "")
    if result["wins"]:
        dropped = [row["trial"] for row in rows if not row["n"]]
        return (
            f"trial {winner} really wins: on the same seeds it is better than "
            + ("the other" if others == 1 else "every other" if not dropped else "all others that completed a run")
            + ", by more than chance explains"
        )
    reasons = [flaws] if (flaws := _flaws(rows[0])) else []
    if tied:
        reasons.append(f"{_listed(tied)} may be as good")
    elif not any(row["n"] for row in rows[1:]):
        reasons.append("no other has completed a run to compare it with")
    return f"no clear winner: trial {winner} has the best mean, but {'; '.join(reasons)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

"""``pyroae compare``: runs ranked by log p(x) of the same test data."""

import torch

from ..checks import whole_number
from ..data import DataSet
from ..data.limits import LIMIT
from ..evaluation.comparison import compare
from ..evaluation.importance import Estimate
from ..model.autoencoder import Autoencoder
from ..training import distributed
from .folder import open_run
from .listing import differences, in_words, number
from .output import CommandOutput
from .scoring import ProposalName, score, scored
from .settings import read_run


def rank(
    runs: list[str], particles: int = 5000, proposal: ProposalName = "auto", examples: int = 500, limit: float = LIMIT
) -> CommandOutput:
    """Rank runs by log p(x) of the same test data, each with its difference from the best and the paired standard error.

    Args:
        runs: the run folders.
        particles: importance samples per test example.
        proposal: their distribution, as for ``evaluate``.
        examples: number of test examples, evenly spaced.
        limit: bytes of memory, as for ``evaluate``.

    Raises:
        ValueError: fewer than two runs, not run folders, different test data, or a model without log p(x).
    """
    whole_number("compare", particles=particles, examples=examples)
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise ValueError(f"compare: expected at least two different run folders, got {' '.join(runs) or 'none'}")
    opened = {run: open_run(run, "compare", limit) for run in runs}
    _check_comparable(opened)
    scores = {run: _estimate(run, *opened[run], particles, proposal, examples) for run in runs}
    if not distributed.is_main():
        return CommandOutput("", {})
    ranked = sorted(runs, key=lambda run: -scores[run].mean)
    rows = _rows(ranked, scores)
    data, n = opened[ranked[0]][1], len(scores[ranked[0]].values)
    some = "" if n == len(data.test) else f", {n:,} test examples (--examples)"
    text = f"{data!r}{some}, {particles:,} importance samples, nats/example\n{_table(rows)}"
    return CommandOutput(text, {"particles": particles, "examples": n, "proposal": proposal, "runs": rows})


def _check_comparable(opened: dict[str, tuple[Autoencoder, DataSet]]):
    """``ValueError`` unless all runs have the same test data and the same kind of likelihood."""
    first, *others = opened
    ae, data = opened[first]
    for run in others:
        other, other_data = opened[run]
        if other_data.test.x.shape != data.test.x.shape or not torch.equal(other_data.test.x[:], data.test.x[:]):
            raise ValueError(f"compare: {run} was tested on other data than {first}, so their log p(x) cannot be compared")
        if scored(other) != scored(ae):
            raise ValueError(f"compare: {run} gives {scored(other)}, but {first} {scored(ae)}; they cannot be ranked together")


def _estimate(run: str, ae: Autoencoder, data: DataSet, particles: int, proposal: ProposalName, examples: int) -> Estimate:
    _, estimate, lines = score(ae, data.test, particles, proposal, sample=examples)
    if estimate is None:
        raise ValueError(f"compare: {run}: {lines[-1]}")
    return estimate


def _rows(ranked: list[str], scores: dict[str, Estimate]) -> list[dict]:
    """What is known of each run, the best first, as plain data."""
    differing = differences({run: read_run(run) for run in ranked})
    rows = []
    for run in ranked:
        row = {"run": run, "log_likelihood": scores[run].mean, "unreliable": scores[run].unreliable}
        if run != ranked[0]:
            d = compare(scores[run], scores[ranked[0]])
            row |= {"difference": d.difference, "paired_se": d.se, "wins": d.wins, "mark": d.mark.strip(" []")}
        rows.append(row | {"verdict": scores[run].verdict.as_dict(), "differs": differing[run]})
    return rows


def _table(rows: list[dict]) -> str:
    width = max(len(row["run"]) for row in rows)
    marks = [f" [{row['mark']}]" if row.get("mark") else "" for row in rows]
    room = max(map(len, marks))
    lines = [f"{'run':{width}}  log p(x)  from the best{'':{room}}  paired s.e.  wins  k-hat > .7  verdict            differs by"]
    for row, mark in zip(rows, marks):
        cells = f"{'':13}{'':{room}}  {'':11}  {'':4}"
        if "difference" in row:
            cells = f"{row['difference']:13.3f}{mark:{room}}  {row['paired_se']:11.2g}  {row['wins']:4.0%}"
        unreliable = number(row["unreliable"], 1, "%")
        values = f"{row['log_likelihood']:8.2f}  {cells}  {unreliable:>10}  {row['verdict']['state']:17}  {in_words(row['differs'])}"
        lines.append(f"{row['run']:{width}}  {values}".rstrip())
    return "\n".join(lines)

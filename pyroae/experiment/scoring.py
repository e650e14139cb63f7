"""Scores of runs: what ``pyroae evaluate`` and ``pyroae compare`` say of models on held-out data."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from .. import schema
from ..checks import whole_number
from ..data import DataSet, Split, binarized, load, record
from ..data.limits import LIMIT
from ..evaluation import proposals
from ..evaluation.comparison import compare as difference
from ..evaluation.crosscheck import cross_check
from ..evaluation.decomposition import active_units, aggregate
from ..evaluation.importance import Estimate, Source, log_likelihood
from ..evaluation.representation import probe, reconstruction_error
from ..evaluation.terms import Terms, elbo_terms
from ..files import atomic
from ..model.autoencoder import Autoencoder
from ..model.posteriors import Delta
from ..training import distributed
from . import baseline
from .apply import new_rows, opened
from .output import CommandOutput, as_json, command
from .settings import arguments_of, read_run

_AT_MOST = 10_000  # data that labels are learned from, or whose codes are compared with one another
_WIDTH = 14  # of the name that begins a line
ProposalName = Literal["auto", "guide", "prior", "Laplace", "Optimised"]
PROPOSALS: dict[str, Callable[[], Source]] = {
    "auto": lambda: "auto",
    "guide": lambda: "guide",
    "prior": lambda: proposals.prior,
    "Laplace": proposals.Laplace,
    "Optimised": proposals.Optimised,
}


def score(
    ae: Autoencoder, test: Split, particles: int, proposal: ProposalName = "auto", sample: int | None = None, check: int = 0
) -> tuple[Terms, Estimate | None, list[str]]:
    """ELBO and log p(x) of held-out data, as far as they exist, and lines that say so.

    Args:
        ae: the model.
        test: the data.
        particles: importance samples for each example.
        proposal: where they are drawn from.
        sample: log p(x) is of so many examples, spread evenly; of all by default.
        check: how many examples are compared with annealing.

    Raises:
        ValueError: the ELBO is finite for no example.
    """
    terms = elbo_terms(ae, test)
    overflows = int((~terms.elbo.isfinite()).sum())
    if overflows == len(terms.elbo):
        raise ValueError(
            f"the ELBO is finite for none of the {overflows:,} test examples: weights are far too large, or the data are on another scale "
            "than those that the model was trained on"
        )
    overflow = f"; not finite for {overflows:,} of {len(terms.elbo):,} examples" if overflows else ""
    elbo, reconstruction, kl = (term.mean().item() for term in (terms.elbo, terms.reconstruction, terms.kl))
    if isinstance(ae.posterior, Delta):
        lines = [f"test log p(x,z) {elbo:.2f} nats/example = log p(x|z) {reconstruction:.2f} + log p(z) {0.0 - kl:.2f}{overflow}"]
    else:
        lines = [f"test ELBO      {elbo:.2f} nats/example = reconstruction {reconstruction:.2f} - KL {kl:.2f}{overflow}"]
    if not ae.prior.proper:
        return terms, None, [*lines, "test log p(x)  does not exist under an improper prior"]
    if isinstance(ae.posterior, Delta) and (proposal == "guide" or sample is not None):
        return terms, None, [*lines, f"test log p(x)  is not defined for a point posterior (Delta); {command()} evaluate RUN scores it"]
    some = test if sample is None or sample >= len(test) else test[sampled(len(test), sample)]
    try:
        found = log_likelihood(ae, some, particles=particles, progress=True, proposal=PROPOSALS[proposal]())
    except ValueError as error:
        if not isinstance(ae.posterior, Delta):
            raise
        return terms, None, [*lines, f"test log p(x)  not given: {error}"]
    if check:
        found = cross_check(found, ae, some, examples=check)
    said = str(found).replace("log p(x) = ", f"{_scored(ae):9} ", 1)
    note = f", {len(some):,} of {len(test):,} examples" if some is not test else ""
    return terms, found, [*lines, f"test {said}{note}", f"{'verdict':{_WIDTH}} {found.verdict.said(command_line=True)}"]


def beside_independent(data: DataSet, found: Estimate | None) -> tuple[dict, list[str]]:
    """A table's score were its columns independent, as numbers and a line; nothing of other data or without log p(x)."""
    if found is None:
        return {}, []
    compared = baseline.gain(data.train, data.test, found.values, sampled(len(data.test), len(found.values)))
    if compared is None:
        return {}, []
    return {"independent": compared.independent, "gain": compared.gain, "gain_se": compared.se}, [f"{'independent':{_WIDTH}} {compared}"]


def sampled(n: int, sample: int) -> torch.Tensor:
    """The rows of an evenly spread sample."""
    return torch.linspace(0, n - 1, sample).round().long()


def _scored(ae: Autoencoder) -> str:
    """What its likelihood is of: log p(x|y) under a condition."""
    return ae.condition.scored if ae.condition is not None else "log p(x)"


def results_of(terms: Terms, found: Estimate | None) -> dict:
    """The same as plain numbers."""
    results = {name: getattr(terms, name).mean().item() for name in ("elbo", "reconstruction", "kl")}
    if found is not None:
        results |= {"log_likelihood": found.mean, "mc_se": found.mc_se, "data_se": found.data_se, "particles": found.particles}
        results |= {
            "bias": found.bias,
            "unreliable": None if math.isnan(found.unreliable) else found.unreliable,
            "bits_per_dim": found.bits_per_dim,
            "proposal": found.proposal,
            "examples": len(found.values),
            "verdict": found.verdict.as_dict(),
        }
    return results


def evaluate(
    run: str, particles: int = 5000, proposal: ProposalName = "auto", check: int = 0, data: str | None = None, limit: float = LIMIT
) -> CommandOutput:
    """Score a run's model on its test data; writes ``evaluation-PARTICLES.json`` and, a row an example, ``.csv`` beside it.

    Of several processes (``pa.distributed``) the first one writes and speaks.

    Args:
        run: the run folder.
        particles: importance samples for each test example's log p(x).
        proposal: where they are drawn from; auto fits a distribution to each example for which the guide will not do.
        check: how many examples are compared with annealing from the prior, which finds modes that the proposal misses.
        data: a file with other rows to score than the run's own test data; rows that it was trained on are left out.
        limit: bytes that the data and the model may take in memory, looked up before they are read.

    Raises:
        ValueError: a folder that is no run, bad particles, or data that have changed since it was trained.
    """
    whole_number("evaluate", particles=particles, check=check or 1)
    ae, found = opened_run(run, "evaluate", limit) if data is None else opened_on(run, data, limit)
    terms, estimate, lines = score(ae, found.test, particles, proposal, check=check)
    if not distributed.is_main():
        return CommandOutput("", {})
    results = results_of(terms, estimate)
    if estimate is not None and not isinstance(ae.posterior, Delta):
        results["kl_to_posterior"] = (estimate.values - terms.elbo).mean().item()
        gap = f"{results['kl_to_posterior']:.2f}{estimate.verdict.mark} nats/example"
        lines.append(f"{'inference gap':{_WIDTH}} KL(q || p(z|x)) {gap}: log p(x) - ELBO")
    for name, say in _SAYINGS.items():
        try:
            more, line = say(ae, found)
        except ValueError as error:
            more, line = {}, f"not given: {error}"
        results |= more
        lines += [f"{name:{_WIDTH}} {part}" for part in line.splitlines()]
    if data is None:
        more, compared = beside_independent(found, estimate)
        results, lines = results | more, lines + compared
    suffix = "" if proposal == "auto" else f"-{proposal}"
    suffix += "" if data is None else f"-{Path(data).name.partition('.')[0]}"
    written = Path(run) / f"evaluation-{particles}{suffix}.json"
    with atomic(written) as temporary:
        temporary.write_text(as_json(results))
    write_rows(written.with_suffix(".csv"), terms, estimate)
    text = "\n".join([f"data           {found!r}", *lines, f"written        {written} and .csv, a row for each example"])
    return CommandOutput(text, {"run": run, **results, "written": str(written)})


def compare(runs: list[str], particles: int = 5000, proposal: ProposalName = "auto", limit: float = LIMIT) -> CommandOutput:
    """A ranking of runs by log p(x) of the same test data, each with its difference from the best and that one's paired error.

    Args:
        runs: the run folders.
        particles: importance samples for each test example's log p(x).
        proposal: where they are drawn from, as for ``evaluate``.
        limit: bytes in memory, as for ``evaluate``.

    Raises:
        ValueError: fewer than two runs, folders that are none, different test data, or a model without log p(x).
    """
    whole_number("compare", particles=particles)
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise ValueError(f"compare: expected at least two different run folders, got {' '.join(runs) or 'none'}")
    opened = {run: opened_run(run, "compare", limit) for run in runs}
    first = opened[runs[0]][1].test
    scores = {}
    for run, (ae, found) in opened.items():
        if found.test.x.shape != first.x.shape or not torch.equal(found.test.x[:], first.x[:]):
            raise ValueError(f"compare: {run} was tested on other data than {runs[0]}, so their log p(x) cannot be compared")
        if _scored(ae) != _scored(opened[runs[0]][0]):
            ours = _scored(opened[runs[0]][0])
            raise ValueError(f"compare: {run} gives {_scored(ae)}, but {runs[0]} {ours}; they cannot be ranked together")
    for run, (ae, found) in opened.items():
        _, estimate, lines = score(ae, found.test, particles, proposal)
        if estimate is None:
            raise ValueError(f"compare: {run}: {lines[-1]}")
        scores[run] = estimate
    if not distributed.is_main():
        return CommandOutput("", {})
    best, *others = sorted(runs, key=lambda run: -scores[run].mean)
    differs = _differences(runs)
    width = max(len(run) for run in runs)
    room = max(len(scores[run].verdict.mark) for run in runs)  # beside a difference
    head = f"{'run':{width}}  log p(x)  from the best{'':{room}}  paired s.e.  wins  k-hat > .7  verdict            differs by"
    ranked, rows = [], []
    for run in (best, *others):
        row = {"run": run, "log_likelihood": scores[run].mean, "unreliable": scores[run].unreliable}
        cells = f"{'':13}{'':{room}}  {'':11}  {'':4}"
        if run != best:
            d = difference(scores[run], scores[best])
            row |= {"difference": d.difference, "paired_se": d.se, "wins": d.wins, "mark": d.mark.strip(" []")}
            cells = f"{d.difference:13.3f}{d.mark:{room}}  {d.se:11.2g}  {d.wins:4.0%}"
        verdict = scores[run].verdict
        ranked.append(row | {"verdict": verdict.as_dict(), "differs": differs[run]})
        text = ", ".join(f"{name} {value}" for name, value in differs[run].items())
        rows.append(f"{run:{width}}  {scores[run].mean:8.2f}  {cells}  {scores[run].unreliable:10.1%}  {verdict.state:17}  {text}".rstrip())
    text = "\n".join([f"{opened[best][1]!r}, {particles:,} importance samples, nats/example", head, *rows])
    return CommandOutput(text, {"particles": particles, "proposal": proposal, "runs": ranked})


def _differences(runs: list[str]) -> dict[str, dict[str, str]]:
    """The settings in which the runs differ, for each of them."""
    settings = {run: read_run(run) for run in runs}
    names = {name: None for each in settings.values() for name in each}
    differ = [name for name in names if len({repr(each.get(name)) for each in settings.values()}) > 1]
    return {run: {name: _in_short(each.get(name)) for name in differ} for run, each in settings.items()}


def _in_short(value: object) -> str:
    """A setting in a few words: of a part its name and what it was made with."""
    if isinstance(value, schema.Spec):
        given = ", ".join(f"{name}={_in_short(each)}" for name, each in value.arguments.items())
        return f"{value.cls.__name__}({given})" if given else value.cls.__name__
    return "default" if value is None else str(value)


def opened_run(run: str, owner: str, limit: float = LIMIT) -> tuple[Autoencoder, DataSet]:
    """A run folder's model and data; ``ValueError`` where it is none."""
    ae, settings = opened(run, owner, limit)
    raw = loaded(settings, run, owner, ("test",))
    return ae, binarized(raw, settings["binarize"]) if settings["binarize"] else raw


def opened_on(run: str, source: str, limit: float = LIMIT) -> tuple[Autoencoder, DataSet]:
    """A run's model, and the rows of another file as its test data."""
    ae, settings = opened(run, "evaluate", limit)
    rows, _ = new_rows(source, ae, settings | {"binarize": None})
    left_out = 0
    if record.is_there(Path(run)):
        rows, left_out = record.unseen(Path(run), rows)
    if len(rows) == 0:
        raise ValueError(f"evaluate: the run was trained on all {left_out} rows of {source}; give rows that it was not trained on")
    note = f"{left_out} rows that the run was trained on are left out" if left_out else ""
    found = DataSet(Path(source).name.partition(".")[0], rows, rows, note=note)
    how = "static" if settings["binarize"] == "dynamic" else settings["binarize"]
    return ae, binarized(found, how) if how else found


def loaded(settings: dict[str, Any], run: str | Path | None, owner: str, needed: tuple[str, ...]) -> DataSet:
    """The data that settings ask for, not binarized; of a run that remembers its data, its own rows again.

    Raises:
        ValueError: data that cannot be read, or rows of a needed split that are not there any more.
    """
    arguments: dict[str, Any] = arguments_of(load, settings) | {"binarize": None}
    if run is None or not record.is_there(Path(run)):
        return load(**arguments)
    known = record.read(Path(run))[1]
    if known.columns:
        arguments |= {"schema": known, "labels": known.label}
    return record.restored(Path(run), load(**arguments), owner, needed)


def write_rows(path: Path, terms: Terms, found: Estimate | None):
    """A row for each example, as CSV; columns of log p(x) are empty where a sample left an example out."""
    columns = {"elbo": terms.elbo, "reconstruction": terms.reconstruction, "kl": terms.kl}
    if found is not None:
        rows = sampled(len(terms.elbo), len(found.values))
        scored = {"log_likelihood": found.values, "mc_se": found.errors, "ess": found.ess, "khat": found.khat}
        columns = {name: _placed(values, rows, len(terms.elbo)) for name, values in scored.items()} | columns
    with atomic(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column if isinstance(column, list) else column.tolist() for column in columns.values())))


def _placed(values: torch.Tensor, rows: torch.Tensor, n: int) -> list[float | str]:
    """Values of some rows among n, the others empty."""
    given = dict(zip(rows.tolist(), values.tolist()))
    return [given.get(i, "") for i in range(n)]


def _rate(ae: Autoencoder, found: DataSet) -> tuple[dict, str]:
    rate = aggregate(ae, found.test[:_AT_MOST])
    return {"mutual_information": rate.mutual_information, "marginal_kl": rate.marginal_kl}, str(rate)


def _units(ae: Autoencoder, found: DataSet) -> tuple[dict, str]:
    units = active_units(ae, found.test)
    return {"active_units": units.active.nonzero().flatten().tolist(), "units": len(units.active)}, str(units)


def _labels(ae: Autoencoder, found: DataSet) -> tuple[dict, str]:
    accuracy = probe(ae, found.train[:_AT_MOST], found.test[:_AT_MOST])
    return {"linear_probe": accuracy.linear, "nearest_neighbours": accuracy.neighbours}, str(accuracy)


def _reconstruction(ae: Autoencoder, found: DataSet) -> tuple[dict, str]:
    error = reconstruction_error(ae, found.test).nanmean().item()
    return {"reconstruction_error": error}, f"mean squared error {error:.4g} for each number of x"


_SAYINGS = {"rate": _rate, "units": _units, "labels": _labels, "reconstruction": _reconstruction}

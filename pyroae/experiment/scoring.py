"""``pyroae evaluate``: the ELBO, log p(x) and every metric of a run's model on its test data."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from ..checks import whole_number
from ..data import DataSet, Split
from ..data.limits import LIMIT
from ..evaluation import proposals
from ..evaluation.crosscheck import cross_check
from ..evaluation.importance import Estimate, Source, log_likelihood
from ..evaluation.terms import Terms, elbo_terms
from ..files import atomic
from ..model.autoencoder import Autoencoder
from ..model.posteriors import Delta
from ..model.posteriors.quantised import Quantised
from ..training import distributed
from . import baseline
from .folder import open_on_file, open_run, write_json
from .metrics import METRICS
from .output import CommandOutput, command

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
    """ELBO and log p(x) of held-out data where they are defined, and the lines to print.

    Args:
        ae: the model.
        test: the data.
        particles: importance samples per example.
        proposal: their distribution.
        sample: number of examples, evenly spaced, whose log p(x) is estimated; by default all. Of a point posterior it may be 0.
        check: number of examples whose estimate is compared with annealed importance sampling.

    Raises:
        ValueError: no example has a finite ELBO.
    """
    terms = elbo_terms(ae, test)
    overflows = int((~terms.elbo.isfinite()).sum())
    if overflows == len(terms.elbo):
        raise ValueError(
            f"the ELBO is finite for none of the {overflows:,} test examples: the weights are far too large, or the data "
            "are on another scale than the training data"
        )
    overflow = f"; not finite for {overflows:,} of {len(terms.elbo):,} examples" if overflows else ""
    elbo, reconstruction, kl = (term.mean().item() for term in (terms.elbo, terms.reconstruction, terms.kl))
    quantised = isinstance(ae.posterior, Quantised)
    if isinstance(ae.posterior, Delta):
        lines = [f"test log p(x,z) {elbo:.2f} nats/example = log p(x|z) {reconstruction:.2f} + log p(z) {0.0 - kl:.2f}{overflow}"]
    else:
        lines = [f"test ELBO      {elbo:.2f} nats/example = reconstruction {reconstruction:.2f} - KL {kl:.2f}{overflow}"]
    if quantised:
        bound = f"test ELBO      {terms.bits_per_dim:.3f} bits/dim, a bound: log p(x) would be a sum over all codes, and is not estimated"
        return terms, None, [*lines, bound]
    if not ae.prior.proper:
        return terms, None, [*lines, "test log p(x)  does not exist under an improper prior"]
    if isinstance(ae.posterior, Delta) and (proposal == "guide" or sample == 0):
        which = "draws of a point posterior (Delta) give none" if proposal == "guide" else "not estimated here"
        return terms, None, [*lines, f"test log p(x)  {which}: {command()} evaluate RUN fits a proposal to each example"]
    subset = test if sample is None or sample >= len(test) else test[evenly_spaced(len(test), sample)]
    try:
        estimate = log_likelihood(ae, subset, particles=particles, progress=True, proposal=PROPOSALS[proposal]())
    except ValueError as error:
        if not isinstance(ae.posterior, Delta):
            raise
        return terms, None, [*lines, f"test log p(x)  not given: {error}"]
    if check:
        estimate = cross_check(estimate, ae, subset, examples=check)
    text = str(estimate).replace("log p(x) = ", f"{scored(ae):9} ", 1)
    note = f", {len(subset):,} of {len(test):,} examples" if subset is not test else ""
    return terms, estimate, [*lines, f"test {text}{note}", f"{'verdict':{_WIDTH}} {estimate.verdict.said(command_line=True)}"]


def gain_over_independent(data: DataSet, estimate: Estimate | None) -> tuple[dict, list[str]]:
    """By how much a table's log p(x) exceeds that of independent columns, as numbers and a line; nothing without a table or log p(x)."""
    if estimate is None:
        return {}, []
    gain = baseline.gain(data.train, data.test, estimate.values, evenly_spaced(len(data.test), len(estimate.values)))
    if gain is None:
        return {}, []
    return {"independent": gain.independent, "gain": gain.gain, "gain_se": gain.se}, [f"{'independent':{_WIDTH}} {gain}"]


def evenly_spaced(n: int, sample: int) -> torch.Tensor:
    """Indices of ``sample`` evenly spaced rows among ``n``."""
    return torch.linspace(0, n - 1, sample).round().long()


def scored(ae: Autoencoder) -> str:
    """The name of the log-likelihood: log p(x|y) of a conditional model."""
    return ae.condition.scored if ae.condition is not None else "log p(x)"


def results_of(terms: Terms, estimate: Estimate | None) -> dict[str, Any]:
    """The scores as plain numbers, for JSON."""
    means = {"elbo": terms.elbo, "reconstruction": terms.reconstruction, "kl": terms.kl}
    results: dict[str, Any] = {name: values.mean().item() for name, values in means.items()}
    if estimate is not None:
        results |= {"log_likelihood": estimate.mean, "mc_se": estimate.mc_se, "data_se": estimate.data_se, "particles": estimate.particles}
        results |= {
            "bias": estimate.bias,
            "unreliable": None if math.isnan(estimate.unreliable) else estimate.unreliable,
            "bits_per_dim": estimate.bits_per_dim,
            "proposal": estimate.proposal,
            "examples": len(estimate.values),
            "verdict": estimate.verdict.as_dict(),
        }
    return results


def evaluate(
    run: str, particles: int = 5000, proposal: ProposalName = "auto", check: int = 0, data: str | None = None, limit: float = LIMIT
) -> CommandOutput:
    """Score a run's model on its test data; writes ``evaluation-PARTICLES.json``, and ``.csv`` with a row per example.

    Of several processes (``pa.distributed``) only the first one writes and prints.

    Args:
        run: the run folder.
        particles: importance samples per test example for log p(x).
        proposal: their distribution; auto fits one to each example for which the guide is not good enough.
        check: number of examples compared with annealing from the prior, which finds modes that the proposal misses.
        data: a file of other rows to score instead of the run's test data; rows of the training data are left out.
        limit: bytes that the data and the model may take in memory, checked before they are read.

    Raises:
        ValueError: not a run folder, particles below 1, or data that have changed since training.
    """
    whole_number("evaluate", particles=particles, check=check or 1)
    ae, dataset = open_run(run, "evaluate", limit) if data is None else open_on_file(run, data, limit)
    terms, estimate, lines = score(ae, dataset.test, particles, proposal, check=check)
    if not distributed.is_main():
        return CommandOutput("", {})
    results = results_of(terms, estimate)
    if estimate is not None and not isinstance(ae.posterior, Delta):
        results["kl_to_posterior"] = (estimate.values - terms.elbo).mean().item()
        gap = f"{results['kl_to_posterior']:.2f}{estimate.verdict.mark} nats/example"
        lines.append(f"{'inference gap':{_WIDTH}} KL(q || p(z|x)) {gap}: log p(x) - ELBO")
    for name, metric in METRICS.items():
        try:
            values, text = metric(ae, dataset)
        except ValueError as error:
            values, text = {}, f"not given: {error}"
        results |= values
        lines += [f"{name:{_WIDTH}} {line}" for line in text.splitlines()]
    if data is None:
        values, line = gain_over_independent(dataset, estimate)
        results, lines = results | values, lines + line
    suffix = "" if proposal == "auto" else f"-{proposal}"
    suffix += "" if data is None else f"-{Path(data).name.partition('.')[0]}"
    path = Path(run) / f"evaluation-{particles}{suffix}.json"
    write_json(path, results)
    write_rows(path.with_suffix(".csv"), terms, estimate)
    text = "\n".join([f"data           {dataset!r}", *lines, f"written        {path} and .csv, a row per example"])
    return CommandOutput(text, {"run": run, **results, "written": str(path)})


def write_rows(path: Path, terms: Terms, estimate: Estimate | None):
    """A CSV file with a row per example; the columns of log p(x) are empty for examples outside the sample."""
    columns = {"elbo": terms.elbo, "reconstruction": terms.reconstruction, "kl": terms.kl}
    if estimate is not None:
        rows = evenly_spaced(len(terms.elbo), len(estimate.values))
        estimates = {"log_likelihood": estimate.values, "mc_se": estimate.errors, "ess": estimate.ess, "khat": estimate.khat}
        columns = {name: _scattered(values, rows, len(terms.elbo)) for name, values in estimates.items()} | columns
    with atomic(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column if isinstance(column, list) else column.tolist() for column in columns.values())))


def _scattered(values: torch.Tensor, rows: torch.Tensor, n: int) -> list[float | str]:
    """A column of ``n`` cells with the values in the given rows, the others empty."""
    by_row = dict(zip(rows.tolist(), values.tolist()))
    return [by_row.get(i, "") for i in range(n)]

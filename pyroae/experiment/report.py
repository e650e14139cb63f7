"""``pyroae report``: one self-contained HTML page about a run."""

import base64
import hashlib
import importlib.util
import io
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pyro
import torch
from jinja2 import Environment
from matplotlib.figure import Figure
from pyro import distributions as dist
from tqdm.auto import tqdm

from .. import plots, programs
from ..data import DataSet
from ..data.limits import LIMIT
from ..evaluation.importance import Estimate
from ..evaluation.particles import as_data
from ..evaluation.verdict import Verdict
from ..files import atomic
from ..model.autoencoder import Autoencoder
from ..model.posteriors import Delta
from ..plots.drawing import COLOURS
from ..programs import Program
from ..structure import describe
from ..training.fit import History
from . import figures
from .atlas import atlas
from .folder import open_run
from .output import CommandOutput
from .run_files import naming, read_columns, read_scores
from .settings import ROLES

_CAPTIONS = {
    "training": "The loss is the mean over the steps of an epoch; the two terms of the ELBO, of training data, are those after it.",
    "weights": "A dot per test example. To the right of the line the estimate of log p(x) is unreliable, and rather too low.",
    "reconstructions": "Test examples above, their reconstructions below.",
    "samples": "z drawn from the prior and decoded. Samples should look like the data above.",
    "codes": "Posterior means of the test data.",
    "manifold": "The latent space, decoded on a regular grid.",
    "manifold-by-prior": "The latent space, decoded at quantiles of the prior.",
    "traversal": "One latent dimension varied per row. A row that does not change carries no information.",
    "interpolation": "From one example to another, by linear interpolation of z.",
    "filters": "Weights of the first layer.",
    "units": "Latent dimensions that do not depend on x are not used.",
    "aggregate": "Where the two differ, samples come from regions without data.",
    "calibration": "A curve below the diagonal: p(x|z) is too narrow. The test is weak for binary data. "
    "A verdict in brackets is that of the draws of p(z|x).",
    "ranks": "A curve below the diagonal: the guide is too narrow, on data simulated from the model.",
}
_AS_ROWS = 10.0  # memory of rows as mappings, relative to columns of numbers
_NO_LIKELIHOOD = "it needs a proper prior and a posterior with a density, or --proposal"
_SHOWN = {"training_seconds", "examples", "particles", "elbo", "reconstruction", "kl"}  # numbers that are not metrics
_SHOWN |= {"log_likelihood", "mc_se", "data_se", "bias", "unreliable", "bits_per_dim", "units"}
_METRICS = 100  # rows of the table, since the folder may be a stranger's
_GOOD = "weights", "calibration", "ranks"
_CODE = "codes", "units", "aggregate", "traversal", "interpolation", "manifold", "manifold-by-prior", "filters"
_DRAWS = "reconstructions", "samples"


def report(run: str, out: str | None = None, projection: figures.Projection = "pca", limit: float = LIMIT) -> CommandOutput:
    """Write one HTML page about a run: model, training, scores, samples, and its latent space to explore.

    Args:
        run: the run folder.
        out: the file to write; by default report.html in the run folder.
        projection: of codes with more than two dimensions: principal components (pca), t-SNE (tsne) or UMAP (umap, an extra).
        limit: bytes that the data and the model may take in memory, checked before they are read.

    Raises:
        ValueError: not a run folder, or UMAP is not installed.
    """
    if projection == "umap" and importlib.util.find_spec("umap") is None:
        raise ValueError("report: UMAP is not installed; pip install 'pyroae[umap]', or use --projection tsne")
    ae, data = open_run(run, "report", limit)
    target = Path(out) if out else Path(run) / "report.html"
    if not target.parent.is_dir():
        raise ValueError(f"report: the folder {target.parent} does not exist; create it first")
    with atomic(target) as temporary:
        temporary.write_text(page(ae, data, Path(run), limit, projection), encoding="utf-8")
    size = target.stat().st_size / 2**20
    return CommandOutput(f"report         {target} ({size:.1f} MB, opens without a network)", {"run": run, "report": str(target)})


def page(ae: Autoencoder, data: DataSet, run: Path, limit: float = LIMIT, projection: figures.Projection = "pca") -> str:
    """The page as HTML. All content is escaped, and its content security policy allows the page's own script alone.

    Raises:
        ValueError: a damaged file in the run folder, or one that takes more than ``limit`` bytes of memory.
    """
    explorer = atlas(ae, data)
    images = dict(tqdm(_figures(ae, data, run, limit, projection), "report", unit="figure", leave=False, disable=None))
    captioned = lambda names: [(images[name], _CAPTIONS[name]) for name in names if name in images]  # noqa: E731
    script = _file("explorer.js")
    settings = read_scores(run / "settings.json")
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(_file("page.html"))
        .render(
            title=run.resolve().name,
            data=repr(data),
            settings=[(name, _python(value)) for name, value in settings.items() if value not in (None, False, 0)],
            parts=[(role, ROLES[role], _python(describe(part))) for role, part in ae.parts.items() if part is not None and role in ROLES],
            programs=_programs(ae, data),
            results=_results(run, limit, isinstance(ae.posterior, Delta)),
            training=captioned(["training"]),
            good=captioned(_GOOD),
            draws=captioned(_DRAWS),
            code=captioned(_CODE),
            explorer=explorer,
            colours=COLOURS,
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _programs(ae: Autoencoder, data: DataSet) -> list[dict[str, Any]]:
    """The sites of model and guide, and their graphs if Graphviz is installed."""
    with programs.eval_mode(ae, seed=0):
        args = tuple(column[:2] for column in as_data(data.test, ae.model, ae.guide))
        traces = dict(zip(("model", "guide"), programs.traces(ae.model, ae.guide, *args)))
        return [{"name": name, "sites": _sites(trace), "svg": _graph(getattr(ae, name), args)} for name, trace in traces.items()]


def _sites(trace: Any) -> list[tuple[str, str, tuple[int, ...], bool]]:
    """Name, distribution, event shape and whether it is observed, of each site; latent sites first."""
    sites = programs.sites(trace, observed=False) | programs.sites(trace, observed=True)
    return [(name, type(_base(site["fn"])).__name__, tuple(site["fn"].event_shape), site["is_observed"]) for name, site in sites.items()]


def _graph(program: Program, args: tuple) -> str | None:
    try:
        svg = pyro.render_model(program, args, render_distributions=True).pipe(format="svg")
    except (ImportError, RuntimeError, NotImplementedError):  # neither Graphviz nor its Python package is needed
        return None
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _base(distribution: Any) -> Any:
    """The distribution inside Pyro's wrappers of shape and mask."""
    while isinstance(distribution, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        distribution = distribution.base_dist
    return distribution


def _results(run: Path, limit: float, pointwise: bool) -> list[tuple[str, str, str]]:
    """Name, value with standard errors, and meaning of every score, from the evaluation with the most particles."""
    path = run / "results.json"
    scores = read_scores(path)
    for file in run.glob("evaluation-*[0-9].json"):
        with naming(path, file):
            if (other := read_scores(file)).get("particles", 0) > scores.get("particles", 0):
                path, scores = file, other
    if not scores:
        return [("not scored yet", "", f"run pyroae evaluate {run}")]
    with naming(path):
        return _score_rows(scores, read_columns(path.with_suffix(".csv"), limit), pointwise)


def _score_rows(scores: dict[str, Any], rows: dict[str, torch.Tensor], pointwise: bool) -> list[tuple[str, str, str]]:
    """The rows of the table of scores: name, value, meaning."""

    def nats(name: str) -> str:
        values = rows.get(name, torch.empty(0))
        error = f" ± {(values.std() / len(values) ** 0.5).item():.2g}" if len(values) > 1 else ""
        return f"{scores[name]:.2f}{error} nats/example"

    table = _likelihood_rows(scores) if "log_likelihood" in scores else [("log p(x)", "not given", _NO_LIKELIHOOD)]
    table.append(("log p(x, z)" if pointwise else "ELBO", nats("elbo"), "reconstruction - KL"))
    table.append(("reconstruction", nats("reconstruction"), "E log p(x|z)"))
    table.append(("KL", nats("kl"), "-log p(z)" if pointwise else "KL(q(z|x) || p(z))"))
    metrics = [(name, value) for name, value in scores.items() if name not in _SHOWN and type(value) in (int, float)]
    return table + [(name.replace("_", " "), f"{value:.4g}", "") for name, value in sorted(metrics[:_METRICS])]


def _likelihood_rows(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    errors = [(scores[name], source) for name, source in (("data_se", "test data"), ("mc_se", "Monte Carlo")) if scores[name] is not None]
    verdict = Verdict.from_dict(scores["verdict"])
    value = f"{scores['log_likelihood']:.2f}{''.join(f' ± {size:.2g} ({source})' for size, source in errors)} nats/example{verdict.mark}"
    samples = f"of {scores['examples']:,} test examples by {scores['particles']:,} importance samples each"
    table = [
        ("log p(x)", value, f"{samples}; in expectation a lower bound"),
        ("verdict", verdict.state, verdict.said(command_line=True).partition(": ")[2]),
        ("bits/dim", f"{scores['bits_per_dim']:.4f}", "-log2 p(x) per entry of x"),
    ]
    if scores["unreliable"] is not None:
        share = f"{scores['unreliable']:.1%} of the examples"
        table.append(("unreliable", share, "k-hat above 0.7; their values are too low rather than too high"))
    return table


def _figures(ae: Autoencoder, data: DataSet, run: Path, limit: float, projection: figures.Projection) -> Iterator[tuple[str, str]]:
    """Every figure by name, as a data URI."""
    columns, scores = read_columns(run / "history.csv", limit, _AS_ROWS), read_columns(run / "results.csv", limit)
    results = read_scores(run / "results.json")
    if columns:
        rows = [dict(zip(columns, values)) for values in zip(*(column.tolist() for column in columns.values()))]
        with naming(run / "history.csv"):
            figure = plots.figure(plots.training, History(results.get("objective", ""), rows))
        yield "training", _uri(figure)
    if "khat" in scores and scores["khat"].isfinite().any():
        with naming(run / "results.json", run / "results.csv"):
            finite = scores["log_likelihood"].isfinite()
            values = [scores[name][finite] for name in ("log_likelihood", "mc_se", "ess", "khat")]
            figure = plots.figure(plots.weights, Estimate(*values, particles=results["particles"], dimensions=data.event_shape.numel()))
        yield "weights", _uri(figure)
    for made in (figures.figures(ae, data, projection), figures.diagnostics(ae, data)):
        for name, figure in made:
            yield name, _uri(figure)


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _python(value: Any) -> str:
    """A part that is described as plain data, written as Python."""
    if isinstance(value, list):
        return f"[{', '.join(map(_python, value))}]"
    if not isinstance(value, dict):
        return str(value)
    if "tensor" in value:
        return "tensor(...)"
    value = dict(value)
    name = next((value.pop(key) for key in ("class", "module") if key in value), "")
    return f"{str(name).rpartition('.')[2]}({', '.join(f'{key}={_python(item)}' for key, item in value.items())})"


def _file(name: str) -> str:
    return (resources.files("pyroae.experiment") / "page" / name).read_text(encoding="utf-8")

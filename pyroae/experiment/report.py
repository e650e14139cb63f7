"""``pyroae report``: one page about a run that needs nothing but itself."""

import base64
import hashlib
import io
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pyro
import torch
from jinja2 import Environment
from matplotlib.figure import Figure
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
    "training": "Epoch by epoch. The two sides of the ELBO are of training data: loss = -reconstruction + KL (+ penalty).",
    "weights": "A dot for each test example. To the right of the line log p(x) is not to be trusted; it is rather too low.",
    "reconstructions": "Above the data, which were not trained on; below what comes back.",
    "samples": "New data: z from the prior, decoded. They should look like the data above.",
    "codes": "Where the test data are in the latent space.",
    "manifold": "The latent space, in equal steps.",
    "manifold-by-prior": "The latent space, in equal shares of the prior.",
    "traversal": "What each number of the code does. Rows that do not change carry nothing.",
    "walk": "From one example to another, in equal steps of z.",
    "filters": "What the first layer looks at.",
    "units": "Numbers of the code that do not depend on x are not used.",
    "aggregate": "Where the two differ, samples are drawn from where no data are.",
    "calibration": "A line below the diagonal: the model is too sure of x. With binary data the test is weak.",
    "ranks": "A line below the diagonal: the guide is too sure of z, on data that the model itself made.",
}
_AS_ROWS = 10.0  # times the memory of columns that their rows as mappings take
_GOOD = "weights", "calibration", "ranks"
_CODE = "codes", "units", "aggregate", "traversal", "walk", "manifold", "manifold-by-prior", "filters"
_DRAWS = "reconstructions", "samples"


def report(run: str, out: str | None = None, limit: float = LIMIT) -> CommandOutput:
    """Write one HTML page about a run: what it is, how it trained, how good it is, what it draws, its latent space to explore.

    Args:
        run: the run folder.
        out: the file to write; by default report.html in the run folder.
        limit: bytes that the data and the model may take in memory, looked up before they are read.

    Raises:
        ValueError: a folder that is no run.
    """
    ae, found = open_run(run, "report", limit)
    target = Path(out) if out else Path(run) / "report.html"
    if not target.parent.is_dir():
        raise ValueError(f"report: the folder {target.parent} is not there; make it first")
    with atomic(target) as temporary:
        temporary.write_text(page(ae, found, Path(run), limit), encoding="utf-8")
    size = target.stat().st_size / 2**20
    return CommandOutput(f"report         {target} ({size:.1f} MB, opens without a network)", {"run": run, "report": str(target)})


def page(ae: Autoencoder, data: DataSet, run: Path, limit: float = LIMIT) -> str:
    """The page, as HTML. Whatever is shown is escaped, and nothing but the page's own script may run or be fetched.

    Raises:
        ValueError: a file of the run that is damaged, or that takes more than ``limit`` bytes of memory.
    """
    explorer = atlas(ae, data)
    drawn = dict(tqdm(_pictures(ae, data, run, limit), "report", unit="picture", leave=False, disable=None))
    captioned = lambda names: [(drawn[name], _CAPTIONS[name]) for name in names if name in drawn]  # noqa: E731
    script = _file("explorer.js")
    settings = read_scores(run / "settings.json")
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(_file("page.html"))
        .render(
            title=run.resolve().name,
            data=repr(data),
            settings=[(name, _said(value)) for name, value in settings.items() if value not in (None, False, 0)],
            parts=[(role, ROLES[role], _said(describe(part))) for role, part in ae.parts.items() if part is not None and role in ROLES],
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
    """Model and guide: their sites in words, and drawn where Graphviz is there."""
    with programs.eval_mode(ae, seed=0):
        args = tuple(each[:2] for each in as_data(data.test, ae.model, ae.guide))
        traces = dict(zip(("model", "guide"), programs.traces(ae.model, ae.guide, *args)))
        sites = {name: programs.sites(trace, observed=False) | programs.sites(trace, observed=True) for name, trace in traces.items()}
        return [
            {
                "name": name,
                "sites": [
                    (site, type(_base(of["fn"])).__name__, tuple(of["fn"].event_shape), of["is_observed"]) for site, of in at.items()
                ],
                "svg": _drawn(getattr(ae, name), args),
            }
            for name, at in sites.items()
        ]


def _drawn(program: Program, args: tuple) -> str | None:
    try:
        svg = pyro.render_model(program, args, render_distributions=True).pipe(format="svg")
    except (ImportError, RuntimeError, NotImplementedError):  # neither Graphviz nor its Python package is needed
        return None
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _base(distribution):
    while hasattr(distribution, "base_dist") and type(distribution).__name__ in (
        "Independent",
        "ExpandedDistribution",
        "MaskedDistribution",
    ):
        distribution = distribution.base_dist
    return distribution


def _results(run: Path, limit: float, pointwise: bool) -> list[tuple[str, str, str]]:
    """Name, value with its errors, and what it means, of the evaluation with most particles; none of a run without one."""
    path = run / "results.json"
    scores = read_scores(path)
    for file in run.glob("evaluation-*[0-9].json"):
        with naming(path, file):
            if (other := read_scores(file)).get("particles", 0) > scores.get("particles", 0):
                path, scores = file, other
    if not scores:
        return [("not scored yet", "", f"pyroae evaluate {run} does it")]
    with naming(path):
        return _said_of(scores, read_columns(path.with_suffix(".csv"), limit), pointwise)


def _said_of(found: dict[str, Any], rows: dict[str, torch.Tensor], pointwise: bool) -> list[tuple[str, str, str]]:
    error = lambda name: f" ± {(rows[name].std() / len(rows[name]) ** 0.5).item():.2g}" if len(rows.get(name, ())) > 1 else ""  # noqa: E731
    said = []
    if "log_likelihood" in found:
        errors = [(found[name], of) for name, of in (("data_se", "test data"), ("mc_se", "Monte Carlo")) if found[name] is not None]
        verdict = Verdict.from_dict(found["verdict"])
        value = f"{found['log_likelihood']:.2f}{''.join(f' ± {size:.2g} ({of})' for size, of in errors)} nats/example{verdict.mark}"
        of = f"{found['examples']:,} test examples by {found['particles']:,} importance samples each"
        said.append(("log p(x)", value, f"of {of}; in expectation a lower bound"))
        said.append(("verdict", verdict.state, verdict.said(command_line=True).partition(": ")[2]))
        said.append(("bits a dimension", f"{found['bits_per_dim']:.4f}", "-log2 p(x) for each number of x"))
        if found["unreliable"] is not None:
            said.append(
                ("unreliable", f"{found['unreliable']:.1%} of the data", "k-hat above 0.7; their values are too low rather than too high")
            )
    else:
        said.append(("log p(x)", "not given", "it needs a proper prior and a posterior with a density, or --proposal"))
    said.append(("log p(x, z)" if pointwise else "ELBO", f"{found['elbo']:.2f}{error('elbo')} nats/example", "reconstruction - KL"))
    said.append(("reconstruction", f"{found['reconstruction']:.2f}{error('reconstruction')} nats/example", "E log p(x|z)"))
    said.append(
        ("KL", f"{found['kl']:.2f}{error('kl')} nats/example", "-log p(z)" if pointwise else "KL(q(z|x) || p(z)): what the code costs")
    )
    known = {"linear_probe", "nearest_neighbours", "mutual_information", "marginal_kl", "kl_to_posterior", "reconstruction_error"}
    return said + [(name.replace("_", " "), f"{found[name]:.4g}", "") for name in sorted(known & found.keys()) if found[name] is not None]


def _pictures(ae: Autoencoder, data: DataSet, run: Path, limit: float) -> Iterator[tuple[str, str]]:
    """Every picture by name, as a data URI."""
    columns, scores = read_columns(run / "history.csv", limit, _AS_ROWS), read_columns(run / "results.csv", limit)
    results = read_scores(run / "results.json")
    if columns:
        rows = [dict(zip(columns, values)) for values in zip(*(column.tolist() for column in columns.values()))]
        with naming(run / "history.csv"):
            figure = plots.figure(plots.training, History(results.get("objective", ""), rows))
        yield "training", _uri(figure)
    if "khat" in scores and scores["khat"].isfinite().any():
        with naming(run / "results.json", run / "results.csv"):
            scored = scores["log_likelihood"].isfinite()
            one = [scores[name][scored] for name in ("log_likelihood", "mc_se", "ess", "khat")]
            figure = plots.figure(plots.weights, Estimate(*one, particles=results["particles"], dimensions=data.event_shape.numel()))
        yield "weights", _uri(figure)
    for made in (figures.figures, figures.diagnostics):
        for name, figure in made(ae, data):
            yield name, _uri(figure)


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _said(value: Any) -> str:
    """JSON data of a part as it would be written in Python."""
    if isinstance(value, list):
        return f"[{', '.join(map(_said, value))}]"
    if not isinstance(value, dict):
        return str(value)
    if "tensor" in value:
        return "tensor(...)"
    value = dict(value)
    name = next((value.pop(key) for key in ("class", "module") if key in value), "")
    return f"{str(name).rpartition('.')[2]}({', '.join(f'{key}={_said(each)}' for key, each in value.items())})"


def _file(name: str) -> str:
    return (resources.files("pyroae.experiment") / "page" / name).read_text(encoding="utf-8")

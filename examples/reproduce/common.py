"""What the scripts of this folder share: the papers' initial guess and loss, the record of a result, and the table of all records.

uv run python examples/reproduce/common.py    # the table of results/*.json, as Markdown
"""

import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import torch
from classifier import Classifier
from published import PUBLISHED, Published
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

import pyroae as pa
from pyroae.evaluation.verdict import Verdict

RESULTS = Path(__file__).parent / "results"
_ADAPTIVE = "adaptive"  # in the table as soon as there is one
_COLUMNS = (
    "result",
    "source",
    "unit",
    "published",
    "ours",
    "Monte-Carlo s.e.",
    "sampling s.e.",
    "k-hat > .7",
    _ADAPTIVE,
    "minutes",
    "note",
)


class GreyBernoulli(dist.Bernoulli):
    """Bernoulli's formula for values between its two."""

    support = constraints.unit_interval


@pa.register("likelihoods")
class CrossEntropy(pa.likelihoods.Likelihood):
    """That of grey levels, as in the papers. It is no density of them: a loss to learn from, not a score."""

    def __init__(self, event_shape=None):
        super().__init__(GreyBernoulli, event_shape)


def glorot(ae: pa.Autoencoder, x: Tensor) -> pa.Autoencoder:
    """Glorot's uniform weights and no biases, but for the decoder's last, which gives the pixels' mean over ``x``."""
    for layer in ae.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    last = [layer for layer in ae.decoder.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.bias.copy_(x.mean(0).flatten().clamp(0.001, 0.999).logit())
    return ae


def binarized(data: str) -> pa.data.DataSet:
    """``static``, Larochelle's MNIST, or grey images of that name, binarized whenever used."""
    return pa.data.load("binarized-mnist") if data == "static" else pa.data.load(data, binarize="dynamic")


def scored(ae: pa.Autoencoder, x: Any, particles: int) -> dict[str, float]:
    """Test log p(x) in nats per example by samples of the guide, as in the papers, with both its errors and the share of k-hat > .7."""
    found = pa.log_likelihood(ae, x, particles=particles, progress=True, proposal="guide")
    terms = pa.elbo_terms(ae, x)
    row = {"ours": found.mean, "Monte-Carlo s.e.": found.mc_se, "sampling s.e.": found.data_se, "k-hat > .7": found.unreliable}
    return row | {"particles": found.particles, "ELBO": terms.elbo.mean().item(), "KL": terms.kl.mean().item()}


def adaptive(ae: pa.Autoencoder, x: Any, particles: int, examples: int = 1000) -> dict[str, dict[str, Any]]:
    """Test log p(x) by the adaptive proposal on some of the data, spread evenly, with its errors and its verdict."""
    some = x[torch.linspace(0, len(x) - 1, min(examples, len(x))).round().long()]
    found = pa.log_likelihood(ae, some, particles=particles, progress=True)
    errors = {"Monte-Carlo s.e.": found.mc_se, "sampling s.e.": found.data_se, "k-hat > .7": found.unreliable}
    return {_ADAPTIVE: {"log p(x)": found.mean, **errors, "examples": len(some), "verdict": found.verdict.as_dict()}}


def error(classifier: Classifier, test: pa.data.Split) -> dict[str, float]:
    """Test error in percent, with the error of that from so many data."""
    share = classifier.error(test)
    return {"ours": 100 * share, "sampling s.e.": 100 * math.sqrt(share * (1 - share) / len(test))}


def record(out: str | Path, name: str, row: dict[str, Any], settings: dict[str, Any]):
    """Write one result, with what it was made by and on and what is published, to ``out/name.json``."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    cores = f"{os.cpu_count()} {platform.machine()} cores, {torch.get_num_threads()} used"
    made = {"machine": torch.cuda.get_device_name() if torch.cuda.is_available() else cores, "torch": torch.__version__}
    beside = PUBLISHED.get(name, Published(name, ""))._asdict()
    (folder / f"{name}.json").write_text(json.dumps(beside | row | {"settings": settings} | made, indent=2) + "\n")


def going_on(folder: Path, settings: dict[str, Any]) -> dict[str, pa.Run]:
    """Arguments of ``pa.fit``: begin in this folder, or go on with what was begun there with these settings."""
    beside, asked = folder.with_name(f"{folder.name}.json"), json.loads(json.dumps(settings))
    if beside.exists() and (begun := json.loads(beside.read_text())) != asked:
        raise ValueError(f"{folder}: was begun with {begun}, now asked for with {asked}; remove it, or say --runs with another folder")
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(asked))
    return {"run": pa.Run(folder, resume=any(folder.glob("checkpoints/*.safetensors")))}


def recorded(out: str | Path, name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run with these settings has written, which is said."""
    path = Path(out) / f"{name}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    if found["settings"] != json.loads(json.dumps(settings)):
        return None
    print(f"{path} is of these settings already: remove it, or say --out with another folder, to make it again")
    return found


def table(folder: str | Path = RESULTS) -> str:
    """All results as a Markdown table, and what was not run."""
    paths = {name: Path(folder) / f"{name}.json" for name in PUBLISHED}
    rows = [json.loads(path.read_text()) for path in paths.values() if path.exists()]
    columns = [column for column in _COLUMNS if column != _ADAPTIVE or any(_ADAPTIVE in row for row in rows)]
    lines = [columns, ["---"] * len(columns), *([_cell(_minutes(row).get(column)) for column in columns] for row in rows)]
    missing = [f"`{name}`" for name, path in paths.items() if not path.exists()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\nNot run yet: {', '.join(missing)}."


def _minutes(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"minutes": row["seconds"] / 60}


def _cell(value: Any) -> str:
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, dict):
        mark = Verdict.from_dict(value["verdict"]).mark
        return f"{value['log p(x)']:.2f}{mark} ({value['Monte-Carlo s.e.']:.2g}), {value['examples']:,} examples"
    if isinstance(value, str):
        return value
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.2g}"


if __name__ == "__main__":
    print(table())

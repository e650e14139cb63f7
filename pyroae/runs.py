"""Runs: train a recipe, score it on held-out data, and keep everything in a folder that is never overwritten."""

import json
import time
from pathlib import Path
from typing import Callable

import torch
from jsonargparse import Namespace

from . import data, files, plots
from .autoencoder import Autoencoder
from .data import DataSet
from .evaluation.importance import log_likelihood
from .evaluation.terms import elbo_terms
from .infer.training import fit
from .options import SWAPPABLE, arguments_of
from .parts.posteriors import Delta


def carry_out(recipe: Callable, settings: Namespace, text: str) -> str:
    """Train, score and draw what the settings ask for; returns a short report.

    Raises:
        ValueError: bad settings or data, or a folder that is already in use; nothing is written then.
    """
    torch.manual_seed(settings.seed or 0)
    found = data.load(**arguments_of(data.load, settings))
    ae = recipe(found, **arguments_of(recipe, settings))
    ae = ae.replace(**{name: settings[name] for name in SWAPPABLE if settings[name] is not None})
    for split in (found.train, found.test):
        ae.likelihood.check(split.draw(split.x))
    folder = _folder(settings.out, f"{recipe.__name__}-{found.name}")
    start = time.perf_counter()
    history = fit(ae, found.train, validation=found.validation, **arguments_of(fit, settings))
    seconds = time.perf_counter() - start
    with files.atomic(folder / "history.csv") as path:
        history.to_csv(path)
    with files.atomic(folder / "settings.json") as path:
        path.write_text(text)
    files.save(ae, folder / "model.safetensors")
    results, report = _score(ae, found, settings.particles)
    with files.atomic(folder / "results.json") as path:
        path.write_text(json.dumps(results | {"training_seconds": seconds}, indent=2))
    drawn = _draw(ae, found, folder)
    return "\n".join(
        [
            repr(found),
            f"trained        {recipe.__name__}, {len(history.rows)} epochs in {seconds:.1f} s on {ae.device.type}, last training loss {history.loss[-1]:.2f} nats/datum",
            *report,
            f"run folder     {folder}: settings.json, model.safetensors, history.csv, results.json, {', '.join(drawn)}",
        ]
    )


def _folder(asked: str | None, name: str) -> Path:
    """The folder asked for, if it is new or empty; otherwise the next free one below ``runs``."""
    if asked is not None:
        folder = Path(asked)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"train: {folder} exists and is not empty; nothing is ever overwritten, so name another folder with --out or remove that one")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    number = 1
    while True:
        folder = Path("runs") / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def _score(ae: Autoencoder, found: DataSet, particles: int) -> tuple[dict, list[str]]:
    terms = elbo_terms(ae, found.test)
    elbo, reconstruction, kl = (term.mean().item() for term in (terms.elbo, terms.reconstruction, terms.kl))
    results = {"elbo": elbo, "reconstruction": reconstruction, "kl": kl}
    if isinstance(ae.posterior, Delta):
        lines = [f"test log p(x,z) {elbo:.2f} nats/datum = log p(x|z) {reconstruction:.2f} + log p(z) {-kl:.2f}"]
        return results, [*lines, "test log p(x)  is not defined for a point posterior (Delta); a Normal posterior can be scored"]
    lines = [f"test ELBO      {elbo:.2f} nats/datum = reconstruction {reconstruction:.2f} - KL {kl:.2f}"]
    try:
        score = log_likelihood(ae, found.test, particles=particles, progress=True)
    except ValueError as reason:
        return results, [*lines, f"test log p(x)  {reason}"]
    results |= {"log_likelihood": score.mean, "mc_se": score.mc_se, "data_se": score.data_se, "particles": particles}
    return results, [*lines, "test " + str(score).replace("log p(x) = ", "log p(x)  ", 1)]


def _draw(ae: Autoencoder, found: DataSet, folder: Path) -> list[str]:
    """Write the pictures that exist for this model; returns their names."""
    pictures = {"reconstructions.png": (plots.reconstructions, found.test.x[:12]), "samples.png": (plots.samples, 60)}
    if not ae.prior.proper:
        del pictures["samples.png"]
    for name, (draw, what) in pictures.items():
        with files.atomic(folder / name) as path:
            plots.save(draw, path, ae, what, found.image_shape)
    return list(pictures)

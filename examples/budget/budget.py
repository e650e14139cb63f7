"""Other systems beside the VAE on MNIST with one budget: 20 epochs, 400 hidden units, 20 latent dimensions where there is a choice.

PYROAE_DATA=... uv run python examples/budget/budget.py                       # all; what is recorded already is not trained again
PYROAE_DATA=... uv run python examples/budget/budget.py --only '["VQ-VAE"]'   # some of them

The digits are drawn from their grey levels anew in every step. Each row is recorded as soon as it is scored, so that an interrupted run
goes on where it stopped; ``README.md`` has the table of the records.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pyroae as pa
from pyroae.data import DataSet
from pyroae.evaluation.verdict import Verdict

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
from adversarial import Critic, learn, vae_gan  # noqa: E402

COLUMNS = {
    "log p(x)": "{:.2f}",
    "error": "{:.2f}",
    "ELBO": "{:.2f}",
    "bits/dim": "{:.4f}",
    "active": "{:.0f}",
    "perplexity": "{:.0f}",
    "squared error": "{:.4f}",
    "linear probe": "{:.1%}",
    "seconds": "{:.0f}",
}
Settings = dict[str, Any]


def fit(ae: pa.Autoencoder, images: DataSet, epochs: int):
    """The same for all: Adam at 2e-3, batches of 256."""
    pa.fit(ae, images.train, epochs=epochs, batch_size=256, lr=2e-3, progress=False, seed=0)


def against_a_critic(ae: pa.Autoencoder, images: DataSet, epochs: int):
    """VAE-GAN, with the critic of ``adversarial.py`` and weight .3."""
    critic = Critic(images.event_shape.numel(), 400)
    _, objective, pair = vae_gan(ae, critic, 0.3)
    learn(ae, objective, critic, pair, images.train.draw(images.train.x), epochs, batch_size=256)


@dataclass(frozen=True)
class System:
    """What makes a model, what trains it, and priors that are fitted to its codes afterwards, a row each."""

    make: Callable[[], pa.Autoencoder]
    has_density: bool = True  # whether what is learned has a log p(x) without another prior
    train: Callable[[pa.Autoencoder, DataSet, int], None] = fit
    data: Callable[[DataSet], DataSet] = lambda images: images  # of the images, what it learns from
    priors: dict[str, Callable[[], pa.priors.Prior]] = field(default_factory=dict)


def seen_above(images: DataSet) -> DataSet:
    """The same images, of which the encoder sees the grey levels of the upper half."""

    def change(split: pa.data.Split) -> pa.data.Split:
        upper = split.x.flatten(1)[:, : split.event_shape.numel() // 2]
        return split.with_inputs(pa.data.Split(upper, labels=None, domain="unit"))

    return images.map(change)


def systems(images: DataSet, latent_dim: int, hidden: int) -> dict[str, System]:
    """What is compared, by name."""
    recipes, priors, posteriors, penalties = pa.recipes, pa.priors, pa.posteriors, pa.penalties
    vae = partial(recipes.vae, images, latent_dim, hidden)
    rae = partial(recipes.rae, images, latent_dim, hidden)
    vq = partial(recipes.vq_vae, images, 64, hidden)
    atoms = partial(recipes.dictionary, images, 512, 32)
    mixture = partial(priors.GaussianMixture, components=10, full=True)

    def changed(make: Callable[[], pa.Autoencoder], penalty=None, **parts) -> Callable[[], pa.Autoencoder]:
        return lambda: make().replace(**parts, **({} if penalty is None else {"objective": pa.Penalised(penalty)}))

    fsq = changed(vae, prior=priors.Codes((16, 3)), posterior=posteriors.FiniteScalar(levels=[8, 5, 5]))
    ball = changed(vae, prior=priors.WrappedNormal(latent_dim, curvature=1.0), posterior=posteriors.WrappedNormal())
    spectral = changed(partial(rae, weight=0.0), decoder=pa.nets.SpectralNorm(pa.nets.MLP(hidden)))
    return {
        "VAE": System(vae, priors={"VAE, two stages": partial(priors.Hierarchical, top=latent_dim // 2)}),
        "autoencoder": System(
            partial(recipes.autoencoder, images, latent_dim, hidden),
            has_density=False,
            priors={"autoencoder, mixture of 10 Normals": mixture, "autoencoder, masked flow": partial(priors.Flow, kind="maf")},
        ),
        "RAE-L2": System(rae, has_density=False, priors={"RAE-L2, mixture": mixture}),
        "RAE-GP": System(changed(rae, penalties.DecoderJacobian(1e-3)), has_density=False, priors={"RAE-GP, mixture": mixture}),
        "RAE-SN": System(spectral, has_density=False, priors={"RAE-SN, mixture": mixture}),
        "VQ-VAE": System(vq, has_density=False, priors={"VQ-VAE, autoregressive prior": priors.CodeSequence}),
        "VQ-VAE, codebook by loss": System(
            changed(vq, posterior=posteriors.VectorQuantised(codes=64, decay=0.0)),
            has_density=False,
        ),
        "FSQ": System(fsq, has_density=False, priors={"FSQ, autoregressive prior": priors.CodeSequence}),
        "TopK": System(atoms, has_density=False),
        "BatchTopK": System(changed(atoms, posterior=posteriors.BatchTopK(k=32)), has_density=False),
        "JumpReLU": System(changed(atoms, penalties.L0(), posterior=posteriors.JumpReLU()), has_density=False),
        "gated": System(changed(atoms, penalties.GatedSparsity(), posterior=posteriors.Gated()), has_density=False),
        "Hamiltonian": System(changed(vae, posterior=posteriors.Hamiltonian(steps=3))),
        "hyperbolic": System(ball),
        "MS-SSIM": System(changed(vae, penalties.MultiScaleSSIM()), has_density=False),
        "VAE-GAN": System(vae, has_density=False, train=against_a_critic),
        "upper half seen": System(partial(recipes.vae, seen_above(images), latent_dim, hidden), data=seen_above),
        "rotation and translation": System(changed(vae, decoder=pa.nets.Spatial([32, 32], rotation=0.3, translation=0.1))),
    }


def scores(ae: pa.Autoencoder, images: DataSet, has_density: bool, examples: int, particles: int) -> dict[str, Any]:
    """Measures of the test digits, as far as they are defined."""
    test, found = images.test, {}
    if hasattr(ae.posterior, "indices"):
        terms, codes = pa.elbo_terms(ae, test), pa.perplexity(ae, test)
        found |= {"ELBO": terms.elbo.mean().item(), "bits/dim": terms.bits_per_dim, "perplexity": codes.perplexity, "codes": codes.codes}
    elif hasattr(ae.posterior, "activate"):
        found["active"] = pa.sparsity(ae, test).l0
    elif not isinstance(ae.posterior, pa.posteriors.Delta):
        found["active"] = int(pa.active_units(ae, test).active.sum())
    if has_density and "ELBO" not in found:
        some = test[torch.linspace(0, len(test) - 1, min(examples, len(test))).round().long()]
        estimate = pa.log_likelihood(ae, some, particles=particles, seed=0)
        more = {"bits/dim": estimate.bits_per_dim, "verdict": estimate.verdict.as_dict(), "estimate": str(estimate)}
        found |= {"log p(x)": estimate.mean, "error": estimate.data_se, **more}
    found["squared error"] = pa.reconstruction_error(ae, test).mean().item()
    found["linear probe"] = pa.probe(ae, images.train[:10_000], test).linear
    return found


def run(name: str, system: System, images: DataSet, settings: Settings, out: Path, models: Path):
    """Train a system and record its rows, as far as they are not recorded with these settings; trained models are kept."""
    images = system.data(images)
    score = partial(scores, images=images, examples=settings["examples"], particles=settings["particles"])
    model = models / _path(out, name).with_suffix(".safetensors").name
    if not recorded(out, name, settings) or not model.exists():
        torch.manual_seed(0)
        ae = system.make()
        start = time.process_time()
        system.train(ae, images, settings["epochs"])
        seconds = time.process_time() - start
        models.mkdir(parents=True, exist_ok=True)
        pa.save(ae, model)
        record(out, name, score(ae, has_density=system.has_density), seconds, settings)
    for each, prior in system.priors.items():
        if not recorded(out, each, settings):
            start = time.process_time()
            fitted = pa.fit_prior(pa.load(model), images.train, prior(), epochs=settings["prior_epochs"], batch_size=512)
            record(out, each, score(fitted, has_density=True), time.process_time() - start, settings)


def record(out: Path, name: str, row: dict[str, Any], seconds: float, settings: Settings):
    """Write a row with the settings that it was made with, and print it."""
    out.mkdir(parents=True, exist_ok=True)
    row = {"system": name, **row, "seconds": seconds, "settings": settings}
    _path(out, name).write_text(json.dumps(row, indent=2) + "\n")
    print("| " + " | ".join(cells(row)) + " |", flush=True)


def recorded(out: Path, name: str, settings: Settings) -> bool:
    """Whether a row is recorded with these settings."""
    path = _path(out, name)
    return path.exists() and json.loads(path.read_text())["settings"] == settings


def _path(out: Path, name: str) -> Path:
    return out / f"{name.replace(', ', '-').replace(' ', '-')}.json"


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    mark = Verdict.from_dict(row["verdict"]).mark if "verdict" in row else ""
    values = [form.format(row[name]) + mark * (name == "log p(x)") if name in row else "" for name, form in COLUMNS.items()]
    return [row["system"], *values]


def table(folder: Path = HERE / "records") -> str:
    """The rows that are recorded, in the order of ``systems``, as Markdown."""
    names = [each for name, system in systems(pa.data.load("digits"), 20, 16).items() for each in (name, *system.priors)]
    rows = [json.loads(path.read_text()) for name in names if (path := _path(folder, name)).exists()]
    lines = [["system", *COLUMNS], ["---"] * (1 + len(COLUMNS)), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(
    data: str = "mnist",
    latent_dim: int = 20,
    hidden: int = 400,
    epochs: int = 20,
    prior_epochs: int = 10,
    examples: int = 300,
    particles: int = 300,
    only: list[str] = [],
    out: str = str(HERE / "records"),
    models: str = "runs/budget",
):
    """Train every system, score it on test digits, and write a record for each row.

    Args:
        data: digits, mnist or fashion-mnist.
        latent_dim: the number of latent dimensions; 64 of quantised codes, 512 of dictionaries.
        hidden: width of the hidden layer.
        epochs: passes over the data.
        prior_epochs: passes over the codes, where the prior that is fitted afterwards has no closed form.
        examples: test digits whose log p(x) is estimated, evenly spaced.
        particles: importance samples for each.
        only: names of the systems; by default all.
        out: folder of the records.
        models: folder of the trained models.
    """
    settings = {name: value for name, value in locals().items() if name not in ("only", "out", "models")}
    images = pa.data.load(data, binarize="dynamic")
    for name, system in systems(images, latent_dim, hidden).items():
        if not only or name in only:
            run(name, system, images, settings, Path(out), Path(models))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

"""Two programs that learn against each other: FactorVAE (Kim & Mnih 2018), the adversarial autoencoder (Makhzani et al. 2016), VAE-GAN.

Each is an Autoencoder with a penalty that a critic computes, and a critic: a Pyro program too, with an SVI of its own.

uv run python examples/adversarial.py                  # FactorVAE on digits, a minute
uv run python examples/adversarial.py --kind adversarial
uv run python examples/adversarial.py --kind vae_gan    # a critic of images (Larsen et al. 2016): what it makes of p(x) has no log p(x)
PYROAE_DATA=... uv run python examples/adversarial.py --kind adversarial --data mnist --latent_dim 10 --hidden 500 --epochs 20
"""

import json
from collections.abc import Callable
from pathlib import Path

import pyro
import torch
from matplotlib.figure import Figure
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import pyroae as pa


class Critic(nn.Module):
    """Tells codes (or images) from what they should be like: logit > 0 says that z is a code (or an image by the model)."""

    def __init__(self, size: int, hidden: int):
        super().__init__()
        self.logit = nn.Sequential(nn.Linear(size, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2))
        self.logit.append(nn.Linear(hidden, 1))

    def model(self, z: Tensor, is_code: Tensor):
        """p(is_code | z)."""
        pyro.module("critic", self)
        with pyro.plate("codes", len(z)):
            pyro.sample("is_code", dist.Bernoulli(logits=self.logit(z)[:, 0]), obs=is_code)

    def guide(self, z: Tensor, is_code: Tensor):
        """Nothing is latent."""

    def judge(self, z: Tensor) -> Tensor:
        """The logit, as a function of z alone: whoever trains by it does not train the critic."""
        return self._fixed(self.logit, z)[:, 0]

    def features(self, z: Tensor) -> Tensor:
        """The last hidden layer, likewise a function of z alone."""
        return self._fixed(self.logit[:-1], z)

    def _fixed(self, network: nn.Module, z: Tensor) -> Tensor:
        return torch.func.functional_call(network, {name: p.detach() for name, p in network.named_parameters()}, z)


def factor_vae(vae: pa.Autoencoder, critic: Critic, weight: float):
    """The ELBO minus the total correlation, as the critic sees it: E log q(z) / prod_j q(z_j). Codes should be like shuffled ones."""
    objective = pa.Penalised(lambda x, z, q: weight * critic.judge(z))
    return vae, objective, lambda x, z: (z, torch.stack([column[torch.randperm(len(z))] for column in z.unbind(1)], 1))


def adversarial_autoencoder(vae: pa.Autoencoder, critic: Critic, weight: float):
    """Reconstruction alone, without a KL; codes should be like draws from the prior."""
    ae = vae.replace(posterior=pa.posteriors.Delta())
    objective = pa.Penalised(lambda x, z, q: weight * nn.functional.softplus(critic.judge(z)), pa.objectives.Tempered(0.0))
    return ae, objective, lambda x, z: (z, ae.sample_prior(len(z)))


def vae_gan(vae: pa.Autoencoder, critic: Critic, weight: float):
    """VAE-GAN (Larsen et al. 2016, eq. 8): besides the ELBO, reconstructions near x in the critic's features, and images that it believes.

    The critic's features change as it learns, and their distance is -log of no density of x: there is no log p(x) of what is learned. The
    ELBO that is printed is that of the program p(z) p(x|z) alone.
    """

    def penalty(x: Tensor, z: Tensor, q, p) -> Tensor:
        away = (critic.features(x) - critic.features(p.mean)).square().sum(1) / 2
        drawn = vae.decode(vae.sample_prior(len(x))).mean
        return weight * (away + nn.functional.softplus(critic.judge(p.mean)) + nn.functional.softplus(critic.judge(drawn)))

    penalty.needs = ("likelihood",)

    def images(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.cat([vae.decode(z).mean, vae.decode(vae.sample_prior(len(x))).mean])
        return made, torch.cat([x, x])  # as many of either

    return vae, pa.Penalised(penalty), images


def learn(
    ae: pa.Autoencoder,
    objective: pa.Penalised,
    critic: Critic,
    pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    epochs: int,
    batch_size: int = 128,
    callback: Callable[[int], None] = lambda epoch: None,
):
    """Steps of both programs in turn: the critic's by the ``pair`` for x and z, what is and what it should be like."""
    learner = SVI(ae.model, ae.guide, pyro.optim.Adam({"lr": 1e-3}), objective)
    opponent = SVI(critic.model, critic.guide, pyro.optim.Adam({"lr": 1e-3, "betas": (0.5, 0.9)}), Trace_ELBO())
    for epoch in range(1, epochs + 1):
        for batch in x[torch.randperm(len(x))].split(batch_size):
            learner.step(batch)
            with torch.no_grad():
                made, wanted = pair(batch, ae.guide(batch))
            both = torch.cat([made, wanted])
            opponent.step(both, torch.arange(len(both)).lt(len(made)).float())
        callback(epoch)
    ae.eval()


KINDS = {"factor": factor_vae, "adversarial": adversarial_autoencoder, "vae_gan": vae_gan}


def main(
    kind: str = "factor",
    data: str = "digits",
    latent_dim: int = 6,
    hidden: int = 128,
    epochs: int = 100,
    batch_size: int = 128,
    weight: float = 3.0,
    seed: int = 0,
    out: str = "adversarial",
):
    """Train both programs in turn; print the terms of the held-out loss and how far the codes are from what they should be.

    Args:
        kind: factor, adversarial or vae_gan.
        data: digits, mnist or fashion-mnist, binarized.
        latent_dim: the number of latent dimensions.
        hidden: width of the hidden layers.
        epochs: passes over the data.
        batch_size: data in a step.
        weight: of the critic's penalty.
        seed: of initial weights, noise and order.
        out: name of the numbers (.json) and of a picture (.png) of samples as training goes.
    """
    torch.manual_seed(seed)
    pyro.clear_param_store()
    images = pa.data.load(data, binarize="threshold")
    critic = Critic(images.event_shape.numel() if kind == "vae_gan" else latent_dim, hidden)
    ae, objective, pair = KINDS[kind](pa.recipes.vae(images, latent_dim, hidden), critic, weight)
    rows, stages = {"before": scores(ae, images.test.x)}, sorted({1, 2, 5, epochs // 3, epochs} & set(range(1, epochs + 1)))
    figure = Figure(figsize=(8, 1.9 * len(stages)), layout="constrained")
    axes = dict(zip(stages, figure.subplots(len(stages), squeeze=False).flat))

    def show(epoch: int):
        if epoch in axes:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                ax = pa.plots.samples(ae, 60, images.image_shape, columns=20, ax=axes[epoch])
            ax.set_title(f"Mean of p(x|z), z from the prior, after epoch {epoch}")

    learn(ae, objective, critic, pair, images.train.x, epochs, batch_size, show)
    rows["after"] = scores(ae, images.test.x)
    for name, row in rows.items():
        print(f"{name:7}", ", ".join(f"{term} {value:.3f}" for term, value in row.items()))
    figure.savefig(f"{out}.png", dpi=80)
    settings = {"kind": kind, "data": data, "latent_dim": latent_dim, "hidden": hidden, "weight": weight, "epochs": epochs, "seed": seed}
    Path(f"{out}.json").write_text(json.dumps({"settings": settings} | rows, indent=2))


def scores(ae: pa.Autoencoder, x: Tensor) -> dict[str, float]:
    """Held-out terms in nats per example, the codes' distance from the prior, and where it exists their total correlation."""
    measures = {"mmd": pa.penalties.MMD(1.0)}
    if not isinstance(ae.posterior, pa.posteriors.Delta):
        measures["total correlation"] = pa.penalties.TotalCorrelation(len(x), 1.0)
    terms = {name: pa.Penalised(measure).terms(ae.model, ae.guide, x) for name, measure in measures.items()}
    shown = {name: terms["mmd"][name].item() for name in ("reconstruction", "kl")}
    return shown | {name: each["penalty"].item() for name, each in terms.items()}


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

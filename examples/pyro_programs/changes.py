"""Training loops that change something between steps: attributes, globals, the parameter store, what is trained, the data's values."""

import io
import random

import pyro
import torch
from pyro import distributions as dist
from pyro import optim, poutine
from pyro.distributions import constraints
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

TEMPERATURE = 1.0


def data(rows=12):
    """Two columns with a shift."""
    return torch.randn(rows, 2) + 1.5


class Annealed(nn.Module):
    """A factor analysis whose KL weight is an attribute; another is in a dictionary, a third is a global variable."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 2), nn.Linear(1, 2)
        self.beta, self.settings = 0.1, {"noise": 0.5, "offsets": [torch.zeros(2)]}

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.Normal(0.0, TEMPERATURE).expand([1]).to_event(1))
            loc = self.decoder(z) + self.settings["offsets"][0]
            pyro.sample("x", dist.Normal(loc, self.settings["noise"]).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)), poutine.scale(scale=self.beta):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def attributes(SVI, steps, what):
    """Between steps the loop sets ``self.beta``, a value in ``self.settings``, a tensor in a list, or a global variable."""
    global TEMPERATURE
    pyro.clear_param_store()
    program, x = Annealed(), data()
    svi = SVI(program.model, program.guide, optim.Adam({"lr": 0.01}), Trace_ELBO())
    try:
        for step in range(steps):
            if what == "attribute":
                program.beta = 0.1 * (step + 1)
            if what == "dictionary":
                program.settings["noise"] = 0.5 + 0.1 * step
            if what == "list":
                program.settings["offsets"][0] = torch.full((2,), 0.1 * step)
            if what == "global":
                TEMPERATURE = 1 + 0.1 * step
            yield svi.step(x)
    finally:
        TEMPERATURE = 1.0


def _shift():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: 0.1 * torch.randn(2))
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        pyro.sample("mean", dist.Normal(loc, scale).to_event(1))

    return model, guide


def parameter_store(SVI, steps, what):
    """The store is saved and loaded, cleared, or one of its values is set, midway."""
    pyro.clear_param_store()
    (model, guide), x, file = _shift(), data(), io.BytesIO()
    svi = SVI(model, guide, optim.Adam({"lr": 0.05}), Trace_ELBO())
    for step in range(steps):
        if step == steps // 3:
            state = pyro.get_param_store().get_state()
            torch.save({"params": {k: v.detach().clone() for k, v in state["params"].items()}, "constraints": state["constraints"]}, file)
        if step == 2 * steps // 3:
            if what == "load":
                file.seek(0)
                pyro.get_param_store().set_state(torch.load(file, weights_only=False))
            if what == "clear":
                pyro.clear_param_store()
            if what == "set":
                pyro.get_param_store()["scale"] = torch.tensor([0.3, 2.0])
        yield svi.step(x)


def late_parameter(SVI, steps):
    """A ``pyro.param`` that the guide asks for from its fourth call on."""
    pyro.clear_param_store()
    (model, guide), x, calls = _shift(), data(), []

    def late_guide(x):
        calls.append(1)
        if len(calls) < 4:
            return guide(x)
        loc = pyro.param("loc") + pyro.param("more", torch.zeros(2))
        pyro.sample("mean", dist.Normal(loc, pyro.param("scale")).to_event(1))

    svi = SVI(model, late_guide, optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(steps):
        yield svi.step(x)


def frozen_midway(SVI, steps):
    """``requires_grad_(False)`` on a parameter of the store for a while, and a network of which a part is never registered."""
    pyro.clear_param_store()
    program, x = Annealed(), data()

    def model(x):
        pyro.module("decoder", program.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(program.decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        loc, scale = program.encoder(x).chunk(2, -1)  # not registered, not trained
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + pyro.param("shift", torch.zeros(1)), scale.exp()).to_event(1))

    svi = SVI(model, guide, optim.SGD({"lr": 0.001}), Trace_ELBO())
    for step in range(steps):
        if step in (2, 4):
            pyro.param("shift").requires_grad_(step == 4)
        yield svi.step(x)
        yield (pyro.param("shift").item(), program.encoder.weight.sum().item())


def two_optimizers(SVI, steps):
    """Two SVIs in turn on shared parameters, each with an optimizer of its own, and predictions between steps."""
    pyro.clear_param_store()
    (model, guide), x = _shift(), data()
    first = SVI(model, guide, optim.Adam({"lr": 0.05}), Trace_ELBO())
    second = SVI(model, guide, optim.SGD({"lr": 0.01}), Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1))
    for step in range(steps):
        yield (first if step % 2 else second).step(x)
        yield Predictive(model, guide=guide, num_samples=3)(x)["mean"].mean().item()


def values_of_data(SVI, steps, what):
    """The model reads numbers out of its data, or lets Python's random numbers decide."""
    pyro.clear_param_store()
    _, guide = _shift()

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        scale = 1.0
        if what == "tolist":
            scale = 1.0 + sum(abs(value) for value in x[0].tolist())
        if what == "numpy":
            scale = 1.0 + float(abs(x.detach().numpy()).max())
        if what == "branch" and x.mean() > 1.5:
            scale = 2.0
        if what == "random" and random.random() < 0.3:
            scale = 3.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)

    svi = SVI(model, guide, optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(steps):
        yield svi.step(data(5))


def hook_midway(SVI, steps):
    """A hook on a parameter's gradient that is registered after some steps and then halves it."""
    pyro.clear_param_store()
    (model, guide), x, norms = _shift(), data(), []
    svi = SVI(model, guide, optim.SGD({"lr": 0.01}), Trace_ELBO())
    for step in range(steps):
        if step == 3:
            dict(pyro.get_param_store().named_parameters())["loc"].register_hook(lambda g: norms.append(g.norm().item()) or g / 2)
        yield svi.step(x)
    yield (float(len(norms)), sum(norms))


def plateau(SVI, steps):
    """``ReduceLROnPlateau`` is told the validation loss; ``AutoNormal`` with a tree of arguments of tensors and plain values."""
    pyro.clear_param_store()

    def model(batch, **options):
        mean = pyro.sample("mean", dist.Normal(0.0, options["prior"]["scale"]).expand([2]).to_event(1))
        with pyro.plate("data", len(batch["x"])):
            pyro.sample("x", dist.Normal(mean, batch["noise"][0]).to_event(1), obs=batch["x"])

    scheduler = optim.ReduceLROnPlateau({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.02}, "patience": 0, "factor": 0.5})
    svi = SVI(model, AutoNormal(model), scheduler, Trace_ELBO())
    for step in range(steps):
        batch = {"x": data(6 + step % 2), "noise": (1.0, "unit")}
        yield svi.step(batch, prior={"scale": 3.0}, name=None)
        validation = svi.evaluate_loss(batch, prior={"scale": 3.0}, name=None)
        scheduler.step(validation)
        yield validation

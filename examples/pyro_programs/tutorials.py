"""Pyro's tutorials: SVI parts 1 to 4 (coin, subsampling, baselines, tips) and custom objectives."""

import pyro
import torch
from pyro import distributions as dist
from pyro import optim, poutine
from pyro.distributions import constraints
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_median
from torch import nn


def coin(SVI, steps):
    """SVI part 1: a fair coin? One sample statement for each toss, out of a list of tensors."""
    pyro.clear_param_store()
    tosses = [torch.tensor(1.0)] * 6 + [torch.tensor(0.0)] * 4

    def model(data):
        fairness = pyro.sample("fairness", dist.Beta(torch.tensor(10.0), torch.tensor(10.0)))
        for i in range(len(data)):
            pyro.sample(f"toss_{i}", dist.Bernoulli(fairness), obs=data[i])

    def guide(data):
        alpha = pyro.param("alpha", torch.tensor(15.0), constraint=constraints.positive)
        beta = pyro.param("beta", torch.tensor(15.0), constraint=constraints.positive)
        pyro.sample("fairness", dist.Beta(alpha, beta))

    svi = SVI(model, guide, optim.Adam({"lr": 0.0005, "betas": (0.90, 0.999)}), loss=Trace_ELBO())
    for _ in range(steps):
        yield svi.step(tosses)


def coin_subsampled(SVI, steps):
    """SVI part 2: the plate draws 5 of 12 rows in each step; the data are a global variable of the program."""
    pyro.clear_param_store()
    data = torch.cat([torch.ones(7), torch.zeros(5)])

    def model():
        fairness = pyro.sample("fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("tosses", len(data), subsample_size=5) as rows:
            pyro.sample("toss", dist.Bernoulli(fairness), obs=data.index_select(0, rows))

    def guide():
        alpha = pyro.param("alpha", torch.tensor(15.0), constraint=constraints.positive)
        beta = pyro.param("beta", torch.tensor(15.0), constraint=constraints.positive)
        pyro.sample("fairness", dist.Beta(alpha, beta))

    svi = SVI(model, guide, optim.Adam({"lr": 0.005}), Trace_ELBO())
    for _ in range(steps):
        yield svi.step()


def local_latents_subsampled(SVI, steps):
    """SVI part 2: local latent variables with a parameter for each row, looked up by the rows that the model's plate has drawn."""
    pyro.clear_param_store()
    data = torch.randn(20) + 2.0

    def model(data):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", len(data), subsample_size=8) as rows:
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=data[rows])

    def guide(data):
        loc = pyro.param("loc", torch.zeros(()))
        pyro.sample("mean", dist.Normal(loc, pyro.param("scale", torch.ones(()), constraint=constraints.positive)))
        locs = pyro.param("locs", torch.zeros(len(data)))
        scales = pyro.param("scales", torch.ones(len(data)), constraint=constraints.softplus_positive)
        with pyro.plate("rows", len(data), subsample_size=8) as rows:
            pyro.sample("z", dist.Normal(locs[rows], scales[rows]))

    svi = SVI(model, guide, optim.SGD({"lr": 0.001, "momentum": 0.9}), Trace_ELBO())
    for _ in range(steps):
        yield svi.step(data)


class ScoreFunctionBeta(dist.Beta):
    """A Beta whose gradients are not reparameterised."""

    has_rsample = False


class BaselineNetwork(nn.Module):
    """A number for the mean of the data."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(1, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x))).squeeze()


class BetaBernoulli:
    """SVI part 3: the variance of a score-function gradient, reduced by a baseline of some kind."""

    def __init__(self, baseline, data):
        self.baseline, self.data = baseline, data
        self.network = BaselineNetwork()

    def model(self, decaying):
        fairness = pyro.sample("fairness", dist.Beta(torch.tensor(10.0), torch.tensor(10.0)))
        with pyro.plate("tosses", len(self.data)):
            pyro.sample("toss", dist.Bernoulli(fairness), obs=self.data)

    def guide(self, decaying):
        alpha = torch.exp(pyro.param("alpha_log", lambda: torch.randn(()) * 0.1 + 1.0))
        beta = torch.exp(pyro.param("beta_log", lambda: torch.randn(()) * 0.1 + 1.0))
        infer = {}
        if self.baseline == "decaying average":
            infer["baseline"] = {"use_decaying_avg_baseline": True, "baseline_beta": decaying}
        if self.baseline == "network":
            pyro.module("my_baseline", self.network)
            infer["baseline"] = {"nn_baseline": self.network, "nn_baseline_input": self.data.mean(0, True)}
        if self.baseline == "value":
            infer["baseline"] = {"baseline_value": torch.tensor(-8.0)}
        pyro.sample("fairness", ScoreFunctionBeta(alpha, beta), infer=infer)


def baselines(SVI, steps, kind):
    """SVI part 3: ``TraceGraph_ELBO`` with a baseline; the network's own learning rate comes from a function of the parameter's name."""
    pyro.clear_param_store()
    program = BetaBernoulli(kind, torch.cat([torch.ones(6), torch.zeros(4)]))

    def arguments(name):
        return {"lr": 0.02} if "baseline" in name else {"lr": 0.003, "betas": (0.93, 0.999)}

    svi = SVI(program.model, program.guide, optim.Adam(arguments), loss=TraceGraph_ELBO())
    for _ in range(steps):
        yield svi.step(0.90)


def tips(SVI, steps):
    """SVI part 4: several particles, a learning rate that decays, an initial scale, and a loss of one row's size by ``poutine.scale``."""
    pyro.clear_param_store()
    x = torch.randn(30, 3)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(30)

    @poutine.scale(scale=1.0 / 30)
    def model(x, y):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ weights if weights.dim() == 1 else (weights @ x.T).squeeze(-2), noise), obs=y)

    guide = poutine.scale(AutoNormal(model, init_loc_fn=init_to_median, init_scale=0.01), scale=1.0 / 30)
    optimizer = optim.ClippedAdam({"lr": 0.01, "lrd": 0.1 ** (1 / 100), "clip_norm": 10.0})
    svi = SVI(model, guide, optimizer, loss=Trace_ELBO(num_particles=3))
    for _ in range(steps):
        yield svi.step(x, y)


def _regression():
    x = torch.linspace(-1, 1, 12)
    y = 2 * x + 0.2 * torch.randn(12)

    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
        with pyro.plate("data", x.shape[-1]):
            pyro.sample("y", dist.Normal(slope * x, 0.2), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", lambda: torch.randn(()))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.interval(1e-3, 3.0))
        pyro.sample("slope", dist.Normal(loc, scale))

    return model, guide, x, y


def custom_function(SVI, steps):
    """Custom objectives: the loss is a plain function of model, guide and their arguments."""
    pyro.clear_param_store()
    model, guide, x, y = _regression()

    def simple_elbo(model, guide, *args, **kwargs):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        return -(model_trace.log_prob_sum() - guide_trace.log_prob_sum())

    svi = SVI(model, guide, optim.Adam({"lr": 0.01}), loss=simple_elbo)
    for _ in range(steps):
        yield svi.step(x, y=y)


def custom_elbo(SVI, steps):
    """Custom objectives: a subclass of ``Trace_ELBO`` that adds a penalty of the parameters to each particle's loss."""
    pyro.clear_param_store()
    model, guide, x, y = _regression()

    class Penalised(Trace_ELBO):
        def differentiable_loss(self, model, guide, *args, **kwargs):
            return super().differentiable_loss(model, guide, *args, **kwargs) + 0.1 * pyro.param("loc").square()

        def loss_and_grads(self, model, guide, *args, **kwargs):
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
            loss.backward()
            return loss.item()

    svi = SVI(model, guide, optim.Adagrad({"lr": 0.05}), Penalised())
    for _ in range(steps):
        yield svi.step(x, y)


def built_in_objectives(SVI, steps, loss):
    """The same program under Pyro's other objectives; the wake-sleep loss is a pair."""
    pyro.clear_param_store()
    model, guide, x, y = _regression()
    losses = {
        "mean field": TraceMeanField_ELBO(num_particles=2, vectorize_particles=True),
        "Renyi": RenyiELBO(alpha=0.5, num_particles=3),
        "wake-sleep": ReweightedWakeSleep(num_particles=3, vectorize_particles=False),
    }
    svi = SVI(model, guide, optim.Adam({"lr": 0.01}), losses[loss])
    for step in range(steps):
        yield svi.step(x, y)
        if step % 2:
            yield svi.evaluate_loss(x, y)

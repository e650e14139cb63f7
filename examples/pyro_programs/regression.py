"""Bayesian regression with every autoguide, Bayesian networks of PyroModules, Gaussian processes, causal effects, easy guides."""

import pyro
import torch
from pyro import distributions as dist
from pyro import optim, poutine
from pyro.contrib import gp
from pyro.contrib.cevae import CEVAE, PreWhitener, TraceCausalEffect_ELBO
from pyro.contrib.easyguide import easy_guide
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def linear_data(rows=20):
    """Two columns and a response with a little noise."""
    x = torch.randn(rows, 2)
    return x, x @ torch.tensor([1.5, -0.7]) + 0.3 + 0.1 * torch.randn(rows)


class BayesianRegression(PyroModule):
    """A linear layer whose weights are sampled; the noise too."""

    def __init__(self, inputs):
        super().__init__()
        self.linear = PyroModule[nn.Linear](inputs, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, inputs]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


def guide_list(model):
    """An AutoGuideList: a joint Normal for the layer, a point for the noise."""
    guides = autoguide.AutoGuideList(model)
    guides.append(autoguide.AutoMultivariateNormal(poutine.block(model, expose=["linear.weight", "linear.bias"])))
    guides.append(autoguide.AutoDelta(poutine.block(model, expose=["sigma"])))
    return guides


def spline_flow(model):
    """A chain of spline couplings."""
    return autoguide.AutoNormalizingFlow(model, lambda size: dist.transforms.spline_autoregressive(size, hidden_dims=[6], count_bins=4))


def structured(model):
    """Conditional structure told site by site."""
    conditionals = {"sigma": "normal", "linear.weight": "mvn", "linear.bias": "normal"}
    return autoguide.AutoStructured(model, conditionals=conditionals, dependencies={"linear.bias": {"linear.weight": "linear"}})


AUTOGUIDES = {
    "AutoDelta": autoguide.AutoDelta,
    "AutoNormal": autoguide.AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": autoguide.AutoLowRankMultivariateNormal,
    "AutoIAFNormal": lambda model: autoguide.AutoIAFNormal(model, hidden_dim=[8]),
    "AutoNormalizingFlow": spline_flow,
    "AutoLaplaceApproximation": autoguide.AutoLaplaceApproximation,
    "AutoStructured": structured,
    "AutoGaussian": autoguide.AutoGaussian,
    "AutoGuideList": guide_list,
    "AutoNormalMessenger": autoguide.AutoNormalMessenger,
    "AutoHierarchicalNormalMessenger": autoguide.AutoHierarchicalNormalMessenger,
    "AutoRegressiveMessenger": autoguide.AutoRegressiveMessenger,
}


def bayesian_regression(SVI, steps, guide):
    """A PyroModule under an autoguide made from it."""
    pyro.clear_param_store()
    x, y = linear_data()
    model = BayesianRegression(2)
    svi = SVI(model, AUTOGUIDES[guide](model), optim.Adam({"lr": 0.03}), loss=Trace_ELBO())
    for _ in range(steps):
        yield svi.step(x, y)


def discrete_parallel(SVI, steps):
    """``AutoDiscreteParallel`` beside ``AutoNormal``: which rows are outliers is a discrete variable of the guide."""
    pyro.clear_param_store()
    x, y = linear_data()

    def model(x, y):
        weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            outlier = pyro.sample("outlier", dist.Bernoulli(0.1))
            pyro.sample("y", dist.Normal((x * weights).sum(-1), 0.5 + 5 * outlier), obs=y)

    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(poutine.block(model, hide=["outlier"])))
    guide.append(autoguide.AutoDiscreteParallel(poutine.block(model, expose=["outlier"])))
    svi = SVI(model, guide, optim.Adam({"lr": 0.02}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(steps):
        yield svi.step(x, y)


class BayesianNetwork(PyroModule):
    """A network whose every weight gets a prior on the way, with a learned noise and a buffer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
        pyro.nn.module.to_pyro_module_(self.body)
        for module in self.body.modules():
            if isinstance(module, PyroModule):
                for name, value in list(module.named_parameters(recurse=False)):
                    setattr(module, name, PyroSample(prior=dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())))
        self.noise = PyroParam(torch.tensor(0.5), constraint=constraints.positive)
        self.register_buffer("centre", torch.zeros(2))

    @PyroParam(constraint=constraints.unit_interval)
    def damping(self):
        return torch.tensor(0.9)

    def forward(self, x, y):
        mean = self.damping * self.body(x - self.centre).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


def modules(SVI, steps):
    """Modules: ``PyroModule``, ``PyroParam``, ``PyroSample`` for each weight of a converted network."""
    pyro.clear_param_store()
    x, y = linear_data()
    model = BayesianNetwork()
    svi = SVI(model, autoguide.AutoNormal(model, init_scale=0.05), optim.RMSprop({"lr": 0.01}), TraceMeanField_ELBO())
    for _ in range(steps):
        yield svi.step(x, y)


def easyguide(SVI, steps):
    """A decorated guide: one Normal over a group of global sites, amortised by index for the rows of a subsampled plate."""
    pyro.clear_param_store()
    data = torch.randn(12) + 1.0

    def model(batch, subsample, full_size):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", full_size, subsample=subsample):
            z = pyro.sample("z", dist.Normal(mean, scale))
            pyro.sample("x", dist.Normal(z, 0.5), obs=batch)

    @easy_guide(model)
    def guide(self, batch, subsample, full_size):
        group = self.group(match="mean|scale")
        loc = pyro.param("guide_loc", torch.zeros(group.event_shape))
        diagonal = pyro.param("guide_scale", 0.1 * torch.ones(group.event_shape), constraint=constraints.positive)
        group.sample("globals", dist.Normal(loc, diagonal).to_event(1))
        with self.plate("rows", full_size, subsample=subsample):
            z_loc = pyro.param("z_loc", lambda: 0.1 * torch.randn(full_size), event_dim=0)
            pyro.sample("z", dist.Normal(z_loc, 0.3))

    svi = SVI(model, guide, optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(steps):
        rows = torch.randperm(12)[:5]
        yield svi.step(data[rows], rows, full_size=12)


def _wave(rows):
    x = torch.linspace(0.0, 5.0, rows)
    return x, 0.5 * torch.sin(3 * x) + 0.1 * torch.randn(rows)


def gp_full(SVI, steps):
    """Exact regression: the data are in the module, priors on the kernel are points of its own guide, ``step`` has no argument."""
    pyro.clear_param_store()
    x, y = _wave(15)
    kernel = gp.kernels.RBF(input_dim=1)
    kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 1.0))
    kernel.variance = PyroSample(dist.LogNormal(0.0, 1.0))
    gpr = gp.models.GPRegression(x, y, kernel, noise=torch.tensor(0.2))
    svi = SVI(gpr.model, gpr.guide, optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(steps):
        yield svi.step()


def gp_minibatch(SVI, steps):
    """A sparse variational process that is given other rows by ``set_data`` before each step."""
    pyro.clear_param_store()
    x, y = _wave(20)
    labels = (y > 0).to(y.dtype)
    likelihood, inducing = gp.likelihoods.Binary(), x[::5].clone()
    kernel = gp.kernels.Sum(gp.kernels.Matern52(input_dim=1), gp.kernels.WhiteNoise(1))
    process = gp.models.VariationalSparseGP(x, labels, kernel, inducing, likelihood, num_data=20, whiten=True, jitter=1e-4)
    svi = SVI(process.model, process.guide, optim.Adam({"lr": 0.01}), TraceMeanField_ELBO())
    for _ in range(steps):
        rows = torch.randperm(20)[:8]
        process.set_data(x[rows], labels[rows])
        yield svi.step()


def cevae(SVI, steps):
    """Causal effects: a loss of its own, and the number of all rows as a keyword argument."""
    pyro.clear_param_store()
    x = torch.randn(30, 3)
    t = torch.rand(30).round()
    y = dist.Bernoulli(logits=x[:, 0] + t).sample()
    program = CEVAE(feature_dim=3, latent_dim=2, hidden_dim=6, num_layers=2)
    whiten = PreWhitener(x)
    adam = optim.ClippedAdam({"lr": 1e-3, "weight_decay": 1e-4, "lrd": 0.1 ** (1 / 50)})
    svi = SVI(program.model, program.guide, adam, TraceCausalEffect_ELBO())
    batches = DataLoader(TensorDataset(x, t, y), batch_size=8, shuffle=True)
    step = 0
    while step < steps:
        for x, t, y in batches:
            yield svi.step(whiten(x), t, y, size=30) / 30
            step += 1


def eight_schools(SVI, steps):
    """A hierarchy written out by hand, ``torch.tensor`` data as a global."""
    pyro.clear_param_store()
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])

    def model(data):
        eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)).to_event(1))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * torch.ones(1)).to_event(1))
        tau = pyro.sample("tau", dist.HalfCauchy(scale=25 * torch.ones(1)).to_event(1))
        pyro.sample("obs", dist.Normal(mu + tau * eta, data[:, 1]).to_event(1), obs=data[:, 0])

    def guide(data):
        loc_eta = pyro.param("loc_eta", torch.randn(8, 1).squeeze(-1))
        scale_eta = pyro.param("scale_eta", 0.1 * torch.rand(8), constraint=constraints.positive)
        for name, size in (("mu", 1), ("logtau", 1)):
            pyro.param(f"loc_{name}", torch.randn(size))
            pyro.param(f"scale_{name}", 0.1 * torch.rand(size), constraint=constraints.positive)
        pyro.sample("eta", dist.Normal(loc_eta, scale_eta).to_event(1))
        pyro.sample("mu", dist.Normal(pyro.param("loc_mu"), pyro.param("scale_mu")).to_event(1))
        log_tau = dist.Normal(pyro.param("loc_logtau"), pyro.param("scale_logtau"))
        pyro.sample("tau", dist.TransformedDistribution(log_tau, dist.transforms.ExpTransform()).to_event(1))

    svi = SVI(model, guide, optim.Adam({"lr": 0.01}), loss=Trace_ELBO())
    for _ in range(steps):
        yield svi.step(torch.stack([y, sigma], 1))

"""More checks of smoke_gpu.py: scores, methods and evaluations of a model on the device, and plain Pyro programs."""

import copy
import functools
import tempfile

import pyro
import torch
from pyro import distributions as dist
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from smoke_checks import autoencoder, data, every, same

import pyroae as pa


def scores(device, row):
    """By every proposal, on the device and on the CPU, from the same model: the same within their errors."""
    digits = pa.data.load("digits", binarize="threshold")
    ae = autoencoder(device, likelihood=pa.likelihoods.Bernoulli(digits.event_shape))
    pa.fit(ae, digits.train, epochs=20, device=str(device), progress=False)
    x, kinds = digits.test.x[:50], ["guide", "auto", pa.proposals.Laplace(), pa.proposals.Optimised(steps=20)]

    def agree(proposal):
        there, here = (_scored(each, x, proposal) for each in (ae, copy.deepcopy(ae).cpu()))
        error = (there.mc_se**2 + here.mc_se**2) ** 0.5
        assert abs(there.mean - here.mean) < 5 * error + 0.01, f"{there.mean:.3f} there, {here.mean:.3f} on the CPU"

    row.note = every({str(ours): functools.partial(agree, ours) for ours in [*kinds, "annealed"]})


def _scored(ae, x, proposal):
    if proposal == "annealed":
        return pa.ais(ae, x, temperatures=100, chains=8, seed=0, progress=False)
    return pa.log_likelihood(ae, x, particles=2000, proposal=proposal, seed=0, progress=False)


USES = {
    "encode": lambda ae, x: ae.encode(x).mean,
    "reconstruct": lambda ae, x: ae.reconstruct(x),
    "sample": lambda ae, x: ae.sample(3),
    "codes": lambda ae, x: pa.codes(ae, x),
    "elbo_terms": lambda ae, x: pa.elbo_terms(ae, x, particles=3).elbo,
    "decompose": lambda ae, x: pa.decompose(ae, x, particles=100).kl_to_posterior,
    "active_units": lambda ae, x: pa.active_units(ae, x).variance,
    "sbc": lambda ae, x: pa.sbc(ae, x, draws=3).ranks,
    "jacobian": lambda ae, x: pa.jacobian(ae, x[:2]).singular_values,
    "impute": lambda ae, x: pa.impute(ae, torch.where(torch.rand(x.shape) < 0.2, torch.nan, x), draws=2),
}


def methods(device, row):
    """Methods and evaluations of a model on the device, of data on the CPU; a saved file read on the CPU."""
    ae, x = autoencoder(device), data(torch.device("cpu"), 100)

    def finite(use):
        assert use(ae, x).isfinite().all(), "not finite"

    row.note = every({name: functools.partial(finite, use) for name, use in USES.items()})
    with tempfile.TemporaryDirectory() as folder:
        pa.save(ae, f"{folder}/model.pa")
        kept = pa.load(f"{folder}/model.pa")
    torch.testing.assert_close(kept.encode(x).mean, ae.encode(x).mean.cpu(), rtol=1e-3, atol=1e-3)


def programs(device, row):
    """Plain Pyro programs: a regression with an autoguide, a mixture summed out."""
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).to(device)

    def losses(model, elbo, mode):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoNormal(pyro.poutine.block(model, hide=["kind"]))
        svi = pa.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo, compile=mode)
        return [svi.step(x) for _ in range(12)]

    def alike(model, elbo, mode):
        same(losses(model, elbo, mode), losses(model, elbo, "eager"))

    pairs = {"regression": (_regression, Trace_ELBO()), "mixture": (_mixture, TraceEnum_ELBO(max_plate_nesting=1))}
    modes = "traced", "compiled"
    row.note = every({f"{name}, {mode}": functools.partial(alike, *pairs[name], mode) for name in pairs for mode in modes})


def _regression(x):
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(x.new_zeros(()), 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x[:, :2] @ slope, noise), obs=x[:, 2])


def _mixture(x):
    with pyro.plate("kinds", 2):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(()), 2.0))
    with pyro.plate("rows", len(x)):
        kind = pyro.sample("kind", dist.Categorical(logits=x.new_zeros(2)), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(centre[kind], 1.0), obs=x[:, 0])

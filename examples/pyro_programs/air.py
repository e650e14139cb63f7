"""Attend, infer, repeat: a varying number of objects in an image."""

import pyro
import torch
from pyro import distributions as dist
from pyro import optim
from pyro.infer import TraceGraph_ELBO
from torch import nn
from torch.nn import functional as F

from .images import HIDDEN, network

CODE = 3  # numbers for an object's appearance


class AIR(nn.Module):
    """Attend, infer, repeat: up to two objects, each present or not, with a place and an appearance; a network as the baseline."""

    SIDE, WINDOW, MOST = 6, 3, 2

    def __init__(self, use_baseline):
        super().__init__()
        pixels = self.SIDE**2
        self.use_baseline = use_baseline
        self.rnn = nn.LSTMCell(pixels + 3 + CODE + 1, HIDDEN)
        self.predict = network(HIDDEN, 1, 3, 3)
        self.encode, self.decode = network(self.WINDOW**2, CODE, CODE), network(CODE, self.WINDOW**2)
        self.baseline_rnn, self.baseline_out = nn.LSTMCell(pixels + 3 + CODE + 1, HIDDEN), nn.Linear(HIDDEN, 1)

    @staticmethod
    def _move(where, image, side):
        """Image windows through an affine grid with scale and shift ``where``."""
        zero = torch.zeros_like(where[:, :1])
        theta = torch.cat([where[:, :1], zero, where[:, 1:2], zero, where[:, :1], where[:, 2:3]], 1).view(-1, 2, 3)
        grid = F.affine_grid(theta, (len(where), 1, side, side), align_corners=False)
        n = int(image.shape[-1] ** 0.5)
        return F.grid_sample(image.view(-1, 1, n, n), grid, align_corners=False).flatten(1)

    def model(self, data, prior):
        pyro.module("decode", self.decode)
        with pyro.plate("data", data.size(0)):
            x, present = data.new_zeros(data.shape), data.new_ones(data.size(0), 1)
            for t in range(self.MOST):
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(prior[t] * present).to_event(1))
                where_prior = dist.Normal(data.new_tensor([2.0, 0.0, 0.0]), data.new_tensor([0.3, 1.0, 1.0])).expand([data.size(0), 3])
                where = pyro.sample(f"z_where_{t}", where_prior.mask(present).to_event(1))
                what_prior = dist.Normal(data.new_zeros(data.size(0), CODE), 1.0)
                what = pyro.sample(f"z_what_{t}", what_prior.mask(present).to_event(1))
                x = x + present * self._move(where, torch.sigmoid(self.decode(what)), self.SIDE)
            pyro.sample("obs", dist.Normal(x, 0.3).to_event(1), obs=data)

    def guide(self, data, prior):
        pyro.module("rnn", self.rnn), pyro.module("predict", self.predict), pyro.module("encode", self.encode)
        if self.use_baseline:
            pyro.module("baseline_rnn", self.baseline_rnn), pyro.module("baseline_out", self.baseline_out)
        with pyro.plate("data", data.size(0)):
            state = baseline = (data.new_zeros(data.size(0), HIDDEN),) * 2
            where, what = data.new_zeros(data.size(0), 3), data.new_zeros(data.size(0), CODE)
            present = data.new_ones(data.size(0), 1)
            for t in range(self.MOST):
                inputs = torch.cat([data, where, what, present], 1)
                state = self.rnn(inputs, state)
                infer = {}
                if self.use_baseline:
                    baseline = self.baseline_rnn(inputs.detach(), baseline)
                    infer = {"baseline": {"baseline_value": (self.baseline_out(baseline[0]) * present).squeeze(-1)}}
                presence, loc, scale = self.predict(state[0]).split([1, 3, 3], 1)
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(torch.sigmoid(presence) * present).to_event(1), infer=infer)
                where = pyro.sample(f"z_where_{t}", dist.Normal(loc, F.softplus(scale)).mask(present).to_event(1))
                loc, scale = self.encode(self._move(where, data, self.WINDOW)).chunk(2, -1)
                what = pyro.sample(f"z_what_{t}", dist.Normal(loc, F.softplus(scale)).mask(present).to_event(1))


def air(SVI, steps, use_baseline=True):
    """``TraceGraph_ELBO``, a learning rate for the baseline by name, and a prior that is annealed as an argument in each step."""
    pyro.clear_param_store()
    data, program = torch.rand(6, AIR.SIDE**2), AIR(use_baseline)

    def arguments(name):
        return {"lr": 1e-2 if "baseline" in name else 1e-3}

    svi = SVI(program.model, program.guide, optim.Adam(arguments), loss=TraceGraph_ELBO())
    for step in range(steps):
        yield svi.step(data, prior=[max(0.5, 1 - 0.05 * step)] * AIR.MOST)

"""``pa.SVI`` equals ``pyro.infer.SVI``: arguments, results, random numbers and parameters, for all changes between steps."""

import argparse
import contextlib
import dataclasses
import inspect
import itertools
import json
import logging
import pickle
import random
import re
import warnings

import numpy as np
import pyro
import pytest
import torch
from conftest import run_uncompiled, small_vae
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.ops.provenance import detach_provenance
from pyro.poutine.messenger import Messenger
from torch import nn

import pyroae as pa
from pyroae.training.step import user_code
from pyroae.training.step.user_code import is_user_file

STEPS, X = 20, torch.linspace(-1.0, 2.0, 50)


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.WARNING, "pyroae")
    return lambda: [record.getMessage() for record in caplog.records]


class Plain:
    """x ~ N(z, 1), z ~ N(mu, 1), as methods of a plain object with settings."""

    def __init__(self):
        self.beta, self.cfg, self.tensors, self.losses = 1.0, {"beta": 1.0}, [torch.ones(())], []

    def model(self, x):
        mu = pyro.param("mu", torch.tensor(0.5))
        with poutine.scale(scale=self.cfg["beta"]), pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z * self.tensors[0], 1.0), obs=x)

    def guide(self, x):
        scale = pyro.param("scale", lambda: 0.5 + torch.rand(()), constraint=constraints.positive)
        with poutine.scale(scale=self.beta), pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))


class Module(nn.Module):
    """The most common idiom: bound methods that register the module's networks."""

    def __init__(self):
        super().__init__()
        self.net, self.other, self.beta = nn.Linear(1, 2), nn.Linear(1, 1), 1.0

    def model(self, x):
        with poutine.scale(scale=self.beta), pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.other(z[:, None])[:, 0], 1.0), obs=x)

    def guide(self, x):
        pyro.module("net", self.net)
        with poutine.scale(scale=self.beta), pyro.plate("data", len(x)):
            loc, scale = self.net(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, scale.exp()))


def run(kind, make, change, arguments, elbo, optim, options):
    """Results of steps from one seed: losses or names of errors, the loss without a step, all parameters."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    random.seed(0)
    programs = make()
    svi = kind(programs.model, programs.guide, optim(), loss=elbo(), **options)
    results = []
    for step in range(STEPS):
        change(programs, step)
        args, kwargs = arguments(step)
        try:
            results.append(svi.step(*args, **kwargs))
        except ValueError:
            results.append("ValueError")
    results += [p.detach().clone() for p in pyro.get_param_store()._params.values()]
    if isinstance(programs, nn.Module):
        results += [p.detach().clone() for p in programs.parameters()]
    return svi, results


def same(a, b):
    return torch.allclose(torch.as_tensor(detach_provenance(a)), torch.as_tensor(b), rtol=1e-6, atol=1e-7, equal_nan=True)


def adam():
    return pyro.optim.Adam({"lr": 0.02})


def check(
    make=Plain,
    change=lambda programs, step: None,
    arguments=lambda step: ((X,), {}),
    elbo=Trace_ELBO,
    optim=adam,
    modes=("eager", "traced"),
    level=None,
):
    """Compare all modes with Pyro; returns the last mode's SVI."""
    _, theirs = run(pyro.infer.SVI, make, change, arguments, elbo, optim, {})
    for mode in modes:
        svi, ours = run(pa.SVI, make, change, arguments, elbo, optim, {"compile": pa.Step(mode, precision="highest")})
        assert list(map(type, ours[:STEPS])) == list(map(type, theirs[:STEPS]))
        for a, b in zip(theirs, ours, strict=True):
            assert a == b if isinstance(a, str) else same(a, b)
    reached = {each[1] for each in svi.levels()["step"] or [(0, 0, 0)]}
    assert level is None or (level in reached if level else reached == {0})
    return svi


# --- parameters are looked up at every step ---


def saving(tmp_path, clear=True):
    def change(programs, step):
        store = pyro.get_param_store()
        if step == 5:
            store.save(tmp_path / "store")
        if step == 10:
            store.load(tmp_path / "store")
        if step == 15 and clear:
            pyro.clear_param_store()

    return change


def test_loading_and_clearing_the_store(tmp_path):
    check(change=saving(tmp_path), level=1)
    check(Module, change=saving(tmp_path, clear=False), level=1)  # Pyro's would then use gradients of all steps since the loading


def test_setting_freezing_and_unfreezing_a_parameter():
    def change(programs, step):
        store = pyro.get_param_store()
        if step == 7:
            store["mu"] = torch.tensor(3.0)
        if step in (12, 16):
            store._params["mu"].requires_grad_(step == 16)

    check(change=change, level=1)


def test_a_parameter_created_later():
    class Late(Plain):
        def guide(self, x):
            scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
            shift = pyro.param("shift", torch.tensor(0.0)) if self.beta > 6 else 0.0
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2 + shift, scale))

    check(Late, change=lambda programs, step: setattr(programs, "beta", 1 + 10 * (step // 10)), level=1)


def test_fit_trains_a_parameter_created_later():
    calls = []

    def model(x):
        mu = pyro.param("mu", torch.tensor(0.0)) if len(calls) > 10 else 0.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        calls.append(1)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    pa.fit(model, 5 + X, guide=guide, epochs=40, batch_size=10, lr=0.1, progress=False, seed=0)
    assert pyro.param("mu").item() > 1.0


def test_a_torch_optimizer_trains_its_own_parameters_and_warns_once_of_new_ones(log):
    torch.manual_seed(0)
    module = Module()

    def guide(x):
        pyro.param("extra", torch.tensor(1.0))
        module.guide(x)

    svi = pa.SVI(module.model, guide, torch.optim.Adam(module.net.parameters(), lr=0.1), Trace_ELBO(), compile="traced")
    before = [p.detach().clone() for p in module.other.parameters()]
    for _ in range(5):
        svi.step(X)
    assert all(map(torch.equal, module.other.parameters(), before)) and pyro.param("extra").item() == 1.0
    assert log() == ["SVI: the parameter 'extra' was created in a step and is not in the optimizer, so it is not trained"]


def test_a_partly_registered_module_is_partly_trained():
    check(Module, level=1)
    module = Module()
    before = [p.detach().clone() for p in module.other.parameters()]
    pa.fit(module.model, X, guide=module.guide, epochs=3, batch_size=25, progress=False)
    assert all(map(torch.equal, module.other.parameters(), before))


def test_fit_leaves_frozen_weights_frozen():
    class Frozen(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = PyroModule[nn.Linear](1, 1).requires_grad_(False)
            self.mu = nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.mu, 1.0))
                pyro.sample("x", dist.Normal(self.net(z[:, None])[:, 0], 1.0), obs=x)

    model = Frozen()
    before = model.net.weight.detach().clone()
    pa.fit(model, X, guide=Plain().guide, epochs=3, batch_size=25, progress=False)
    assert torch.equal(model.net.weight, before) and not model.net.weight.requires_grad and model.mu.item() != 0.0


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_two_svi_share_parameters(mode):
    ends = []
    for second in (pyro.infer.SVI, pa.SVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        programs, more = Plain(), {"compile": mode} if second is pa.SVI else {}
        svis = [kind(programs.model, programs.guide, adam(), Trace_ELBO()) for kind in (pyro.infer.SVI,)]
        svis.append(second(programs.model, programs.guide, adam(), TraceMeanField_ELBO(), **more))
        ends.append([svi.step(X) for _ in range(8) for svi in svis])
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)
    pa.SVI(programs.model, programs.guide, adam(), Trace_ELBO(), compile=mode).step(X)
    assert all(p.grad is None for p in pyro.get_param_store()._params.values())


# --- what Python holds may change between steps ---

FACTOR = 1.0


class Global(Plain):
    def model(self, x):
        with poutine.scale(scale=FACTOR):
            super().model(x)


def set_global(programs, step):
    global FACTOR
    FACTOR = 1.0 + 0.1 * step


def weight():
    return weight.factor


weight.factor = 1.0
WEIGHTS = {"x": 1.0}


class Weighted(Plain):
    """A program that reads its weight from a set, an array, an object's slots or an attribute of a function."""

    def __init__(self):
        super().__init__()
        self.flags, self.array = set(), np.ones(1)
        WEIGHTS["x"] = Own.power = weight.factor = 1.0

    def model(self, x):
        with poutine.scale(scale=weight() * float(self.array[0]) * (2.0 if "double" in self.flags else 1.0)):
            super().model(x)


class Own(dist.Normal):
    """A distribution whose methods Pyro calls."""

    power = 1.0

    def log_prob(self, value):
        return super().log_prob(value) * self.power * WEIGHTS["x"]


class OfOwn(Weighted):
    def model(self, x):
        super().model(x)
        pyro.sample("y", Own(0.0, 1.0), obs=x[0])


class Weigh(Messenger):
    """A handler whose methods Pyro calls."""

    def _pyro_sample(self, msg):
        msg["scale"] = msg["scale"] * WEIGHTS["x"]


class Handled(Weighted):
    def __init__(self):
        super().__init__()
        self.model = Weigh()(super().model)


class OfTensor(Weighted):
    def __init__(self):
        super().__init__()
        self.tensors[0].weight = 1.0

    def model(self, x):
        with poutine.scale(scale=self.tensors[0].weight):
            super().model(x)


@dataclasses.dataclass(slots=True)
class InSlots:
    beta: float = 1.0
    unset: float = dataclasses.field(init=False)


class Settled:
    """Settings whose attributes are computed, and whose class raises at others, as pydantic's and OmegaConf's may."""

    def __init__(self):
        self.values = {"beta": 1.0}

    def __getattr__(self, name):
        if name.startswith("_"):
            raise RuntimeError(f"no {name} here")
        if name not in self.values:
            raise AttributeError(name)
        return self.values[name]


class Setting(Plain):
    """A program that reads its weight from an object of settings."""

    def __init__(self, settings):
        super().__init__()
        self.settings = settings

    def model(self, x):
        with poutine.scale(scale=self.settings.beta + getattr(self.settings, "unset", 0.0)):
            super().model(x)


CHANGES = {
    "an attribute in a slot": (
        lambda: Setting(InSlots()),
        lambda programs, step: setattr(programs.settings, "beta", 1.0 + 0.1 * (step // 7)),
    ),
    "an empty slot": (lambda: Setting(InSlots()), lambda programs, step: setattr(programs.settings, "unset", 1.0) if step == 9 else None),
    "an object that raises at names": (
        lambda: Setting(Settled()),
        lambda programs, step: programs.settings.values.update(beta=1.0 + 0.1 * (step // 7)),
    ),
    "an attribute of a tensor": (OfTensor, lambda programs, step: setattr(programs.tensors[0], "weight", 1.0 + step // 9)),
    "an attribute of a function": (Weighted, lambda programs, step: setattr(weight, "factor", 1.0 + 0.1 * (step // 7))),
    "a set": (Weighted, lambda programs, step: programs.flags.add("double") if step == 9 else None),
    "an array, in place": (Weighted, lambda programs, step: programs.array.fill(1.0 + 0.1 * (step // 7))),
    "a class that a distribution's method reads": (OfOwn, lambda programs, step: setattr(Own, "power", 1.0 + 0.1 * (step // 7))),
    "a global that a distribution's method reads": (OfOwn, lambda programs, step: WEIGHTS.update(x=1.0 + 0.1 * (step // 7))),
    "a global that a handler's method reads": (Handled, lambda programs, step: WEIGHTS.update(x=1.0 + 0.1 * (step // 7))),
    "an attribute of a module": (Module, lambda programs, step: setattr(programs, "beta", 0.1 * (step + 1))),
    "an attribute of a plain object": (Plain, lambda programs, step: setattr(programs, "beta", 0.1 * (step + 1))),
    "a number in a dictionary": (Plain, lambda programs, step: programs.cfg.update(beta=0.1 * (step + 1))),
    "a tensor in a list": (Plain, lambda programs, step: programs.tensors.__setitem__(0, torch.tensor(1.0 + 0.1 * step))),
    "a global number": (Global, set_global),
    "a list that the programs do not read": (Plain, lambda programs, step: programs.losses.append(step)),
    "another network": (Module, lambda programs, step: setattr(programs, "net", nn.Linear(1, 2)) if step == 9 else None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_between_steps_are_noticed(name):
    make, change = CHANGES[name]
    check(make, change=change, level=1)


def test_an_attribute_added_later():
    class Optional(Plain):
        def model(self, x):
            with poutine.scale(scale=getattr(self, "factor", 1.0)):
                super().model(x)

    check(Optional, change=lambda programs, step: setattr(programs, "factor", 3.0) if step == 10 else None, level=1)


class Counting(Plain):
    def model(self, x):
        self.beta += 1
        with poutine.scale(scale=float(self.beta)):
            super().model(x)


class Listing(Plain):
    def model(self, x):
        self.tensors.append(torch.tensor(float(len(self.tensors))))
        with poutine.scale(scale=1.0 + len(self.tensors)):
            super().model(x)


class Reading(Plain):
    def model(self, x):
        super().model(torch.tensor(x.tolist()))


class Branching(Plain):
    def model(self, x):
        with poutine.scale(scale=2.0 if x.mean() > 0.5 else 1.0):
            super().model(x)


class Drawing(Plain):
    def guide(self, x):
        super().guide(x + (1.0 if random.random() < 0.3 else 0.0))


class Library:
    """An object of a library, which is not guarded; it requires that a program runs to its end."""

    __module__ = "pyro.infer"
    _begun = False

    def begin(self):
        self._begun, before = True, self._begun
        return 2.0 if before else 1.0

    def end(self):
        self._begun = False


class Interrupted(Plain):
    library = Library()

    def model(self, x):
        with poutine.scale(scale=self.library.begin()):
            super().model(torch.tensor(x.tolist()))
        self.library.end()


class Iterating(Plain):
    def __init__(self):
        super().__init__()
        self.weights = itertools.cycle([1.0, 2.0, 3.0])

    def model(self, x):
        with poutine.scale(scale=next(self.weights)):
            super().model(x)


class OfItsClass(Plain):
    """Attributes of a class instead of its object."""

    generator = np.random.default_rng(0)

    def model(self, x):
        with poutine.scale(scale=1.0 + self.generator.random()):
            super().model(x)


class OwnGenerator(Plain):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def model(self, x):
        with poutine.scale(scale=1.0 + self.generator.random()):
            super().model(x)


class Milestones(Plain):
    def __init__(self):
        super().__init__()
        self.step = 0

    def model(self, x):
        with poutine.scale(scale=2.0 if self.step + 1 in {10, 15} else 1.0):
            super().model(x)


class Counted(Plain):
    def model(self, x):
        with poutine.scale(scale=float(len(x[x > 0.5].nonzero()))):
            super().model(x)


class SomebodyElses(Plain):
    def __init__(self):
        super().__init__()
        self.tensors = [torch.ones((), requires_grad=True)]


class Unwatchable(Plain):
    def model(self, x):
        with poutine.scale(scale=globals()["FACTOR"]):
            super().model(x)


class Closed:
    """An object that shows its attributes to nobody."""

    beta = 1.0
    __dict__ = property(lambda self: 1 / 0)


UNTRACEABLE = {
    "an object that cannot be read": (lambda: Setting(Closed()), "something that it holds cannot be read: ZeroDivisionError"),
    "an iterator": (Iterating, "it reads .*weights, a cycle, in which changes cannot be seen"),
    "a random number generator": (OwnGenerator, "it reads .*generator, a Generator, in which changes cannot be seen"),
    "a computed name": (Unwatchable, "model uses globals, in which changes cannot be seen"),
    "a count of entries": (Counted, "whose number depends on values|depends on values"),
    "a gradient for somebody else": (SomebodyElses, r"leaves a gradient on .*tensors\[0\], which is no parameter of the optimizer"),
    "a counter": (Counting, "the program changes 'model.beta' as it runs"),
    "a list that grows": (Listing, "the program changes 'model.tensors' as it runs"),
    "tolist": (Reading, r"test_drop_in.py:\d+ \(super\(\).model\(torch.tensor\(x.tolist\(\)\)\)\): tolist\(\) reads a tensor's values"),
    "an interrupted program of a library": (Interrupted, "tolist"),
    "a branch": (Branching, r"test_drop_in.py:\d+ \(with poutine.scale.*: control flow that depends on a tensor's values"),
    "Python's random numbers": (Drawing, r"test_drop_in.py:\d+ \(super\(\).guide.*: it draws from Python's or NumPy's random numbers"),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_programs_without_a_graph_stay_eager_and_the_reason_is_logged(name, log):
    make, words = UNTRACEABLE[name]
    check(make, arguments=lambda step: ((X + 0.2 * step,), {}), level=0)
    (line,) = log()
    assert line.startswith("compile: the program cannot be traced and stays eager") and re.search(words, line)


def test_a_gradient_hook_is_called_at_every_step(log):
    norms = []

    def change(programs, step):
        if step == 9:
            pyro.get_param_store()._params["mu"].register_hook(lambda gradient: norms.append(gradient.norm()))

    check(change=change)
    assert len(norms) == 3 * (STEPS - 9) and "a hook on a parameter" in log()[0]


def test_a_wrong_graph_is_detected(log, monkeypatch):
    """State of a library's module, which is not walked: the next proof falls back to the program."""
    monkeypatch.setattr(torch, "hidden_factor", 1.0, raising=False)

    class Hidden(Plain):
        def model(self, x):
            with poutine.scale(scale=torch.hidden_factor):
                super().model(x)

    svi = pa.SVI(Hidden().model, Plain().guide, adam(), Trace_ELBO(), compile="traced")
    for _ in range(6):
        torch.hidden_factor += 1.0
        svi.step(X)
    assert svi.levels()["step"][0][1] == 0 and "repeats it" in log()[0]


def test_a_number_used_as_a_key_is_specialized_by_value():
    check(Milestones, change=lambda programs, step: setattr(programs, "step", step))


def both_losses(between, optim=adam, **options):
    """Losses under Pyro and here, with ``between(svi, step)``, a context or ``None``, before each step."""
    ends = []
    for kind, more in ((pyro.infer.SVI, {}), (pa.SVI, {"compile": "traced"} | options)):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi, losses = kind(Plain().model, Plain().guide, optim(), Trace_ELBO(), **more), []
        for step in range(STEPS):
            with between(svi, step) or contextlib.nullcontext():
                losses.append(svi.step(X))
        ends.append(losses)
    return ends


HANDLERS = {"scale": lambda step: poutine.scale(scale=1.0 + step % 3), "block": lambda step: poutine.block()}


@pytest.mark.parametrize("name", HANDLERS)
def test_outer_handlers_have_an_effect(name):
    theirs, ours = both_losses(lambda svi, step: HANDLERS[name](step))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_optimizer_can_be_replaced():
    theirs, ours = both_losses(lambda svi, step: setattr(svi, "optim", pyro.optim.SGD({"lr": 1e-3})) if step == 10 else None)
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("what", ["settings of each parameter", "another state"])
def test_adam_inside_a_graph_keeps_settings_per_parameter(what, monkeypatch):
    run_uncompiled(monkeypatch)

    def optim():
        own = {"lr": 0.02, "weight_decay": 0.5}
        return pyro.optim.AdamW(lambda name: own if name == "scale" and what.startswith("settings") else {"lr": 0.02})

    def between(svi, step):
        if step == 12 and what == "another state":
            for adamw in svi.optim.optim_objs.values():
                state = adamw.state_dict()
                state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"] + 1.0
                adamw.load_state_dict(state)

    theirs, ours = both_losses(between, optim, compile="compiled")
    assert ours == pytest.approx(theirs, rel=1e-5)


class Dividing(Plain):
    def model(self, x):
        super().model(x)
        pyro.get_param_store()._params["mu"].data.mul_(0.9)
        x.div_(1.1)


def test_in_place_writes_happen_once():
    x = {}

    def arguments(step):
        if step == 0:
            x["held"] = X.clone()
        return (x["held"],), {}

    check(Dividing, arguments=arguments, level=1)


def test_another_memory_layout_is_another_specialization():
    class Viewing(Plain):
        def model(self, x):
            super().model(x.view(-1) if x.is_contiguous() else x.reshape(-1))

        def guide(self, x):
            super().guide(x.reshape(-1))

    square = X.reshape(5, 10)
    check(Viewing, arguments=lambda step: ((square if step % 7 else square.t().contiguous().t(),), {}), level=1)


# --- validation ---


class Counts(Plain):
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Poisson(z.exp()), obs=x)


@pytest.mark.parametrize("wrong", [-1.0, 2.5, float("nan")])
def test_errors_of_pyro_are_raised_at_any_step(wrong):
    def arguments(step):
        return (torch.full((50,), wrong if step in (0, 8, 15) else 2.0),), {}

    check(Counts, arguments=arguments, level=1)
    with pytest.raises(ValueError, match="Expected (value argument|parameter loc)"):
        pa.fit(Counts().model, arguments(0)[0][0], guide=Plain().guide, epochs=2, progress=False)


def test_fit_stops_at_invalid_data_in_a_graph():
    x = torch.full((400,), 2.0)
    x[-1] = -1.0
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=10)
    with pytest.raises(ValueError, match="Expected value argument"):
        pa.fit(Counts().model, loader, guide=Plain().guide, epochs=2, progress=False, compile="traced")


# --- arguments ---


class Arguments(Plain):
    def model(self, x, beta=1.0, settings=None):
        x = x["x"][0] if isinstance(x, dict) else x.data if isinstance(x, argparse.Namespace) else x
        with poutine.scale(scale=beta):
            super().model(x)

    def guide(self, x, beta=1.0, settings=None):
        x = x["x"][0] if isinstance(x, dict) else x.data if isinstance(x, argparse.Namespace) else x
        with poutine.scale(scale=beta):
            super().guide(x)


ARGUMENTS = {
    "a number that changes": (lambda step: ((X, 0.1 * (step + 1)), {}), 1),
    "by keyword": (lambda step: ((), {"x": X, "beta": 0.1 * (step + 1)}), 1),
    "NumPy's number": (lambda step: ((X, np.float32(0.1 * (step + 1))), {}), 1),
    "dictionaries of lists": (lambda step: (({"x": [X + step]},), {}), 1),
    "a namespace": (lambda step: ((argparse.Namespace(data=X + step),), {}), 1),
    "nothing, then a dictionary": (lambda step: ((X,), {"settings": None if step < 3 else {"a": 1}}), 1),
    "a number of the epoch and a smaller last batch": (lambda step: ((X[: 50 - 20 * (step % 3 == 2)], 1.0 + step // 3), {}), 1),
    "batches of two sizes": (lambda step: ((X[: 50 - 20 * (step % 2)],), {}), 1),
    "an array": (lambda step: ((X,), {"settings": np.ones(2)}), None),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_any_type(name):
    arguments, level = ARGUMENTS[name]
    svi = check(Arguments, arguments=arguments)
    assert (svi._gradients.mode == "eager") == (level is None)
    assert level is None or level in {each[1] for each in svi.levels()["step"]}


def test_constants_of_programs_are_not_written():
    constant = torch.ones(())  # a graph of the caller's that holds it would be void

    class Constant(Plain):
        def model(self, x):
            super().model(x * constant)

    check(Constant, level=1)
    assert constant._version == 0


def test_packed_sequences():
    class Packed(Plain):
        def model(self, x):
            super().model(x.data)

        def guide(self, x):
            super().guide(x.data)

    pack = nn.utils.rnn.pack_sequence
    check(Packed, arguments=lambda step: ((pack([X[:20] + step, X[:10] - step, X[:5]]),), {}), level=1)


def test_programs_without_arguments():
    class Bound(Plain):
        def __init__(self):
            super().__init__()
            inner = Plain()
            self.model, self.guide = lambda: inner.model(X), lambda: inner.guide(X)

    check(Bound, arguments=lambda step: ((), {}), level=1)


# --- ELBOs ---


class Mixture(Plain):
    def model(self, x):
        weights = pyro.param("weights", torch.ones(3) / 3, constraint=constraints.simplex)
        mu = pyro.param("mu", torch.tensor([-1.0, 0.0, 1.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            assert k.dim() == 2
            pyro.sample("x", dist.Normal(mu[k], 1.0), obs=x)

    def guide(self, x):
        pass


class Scored(Plain):
    def model(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(k * pyro.param("mu", torch.tensor(0.5)), 1.0), obs=x)

    def guide(self, x):
        q = pyro.param("q", torch.tensor(0.4), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(q), infer={"baseline": {"use_decaying_avg_baseline": True}})


ELBOS = {
    "TraceMeanField": (TraceMeanField_ELBO, Plain),
    "TraceEnum": (lambda: TraceEnum_ELBO(max_plate_nesting=1), Mixture),
    "TraceGraph with a decaying average": (TraceGraph_ELBO, Scored),
    "Renyi": (lambda: RenyiELBO(num_particles=3), Plain),
    "three particles": (lambda: Trace_ELBO(num_particles=3), Plain),
    "vectorised": (lambda: Trace_ELBO(num_particles=3, vectorize_particles=True), Plain),
    "a function": (lambda: lambda model, guide, x: Trace_ELBO().differentiable_loss(model, guide, x), Plain),
    "a method": (lambda: Trace_ELBO().differentiable_loss, Plain),
}


@pytest.mark.parametrize("name", ELBOS)
def test_every_loss(name):
    elbo, make = ELBOS[name]
    check(make, elbo=elbo, level=1)


def test_a_loss_that_is_a_tuple_stays_one():
    ends = []
    for kind, more in ((pyro.infer.SVI, {}), (pa.SVI, {"compile": "traced"})):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = kind(Plain().model, Plain().guide, adam(), ReweightedWakeSleep(num_particles=3, max_plate_nesting=1), **more)
        ends.append([svi.step(X) for _ in range(5)] + [svi.evaluate_loss(X)])
    assert all(type(loss) is tuple and type(loss[0]) is float for loss in ends[1])
    assert torch.allclose(torch.tensor(ends[0]), torch.tensor(ends[1]), rtol=1e-6)


@pytest.mark.parametrize("make", [lambda: pa.objectives.Tempered(0.5), lambda: pa.Penalised(lambda x, z, q: 0.1 * z.sum())])
def test_objectives_around_a_guide_without_reparameterised_draws(make):
    class Coins(Scored):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(0.4), constraint=constraints.unit_interval)))

    check(Coins, elbo=make, level=1)


@pytest.mark.parametrize("optim", ["ClippedAdam", "AdagradRMSProp", "SGD", "RMSprop"])
def test_pyros_optimizers(optim):
    check(optim=lambda: getattr(pyro.optim, optim)({"lr": 0.02} if optim != "AdagradRMSProp" else {}), level=1)


@pytest.mark.parametrize("optim", ["Adam", "ClippedAdam"])
def test_pyros_adam_inside_a_compiled_graph(optim, monkeypatch):
    run_uncompiled(monkeypatch)
    svi = check(optim=lambda: getattr(pyro.optim, optim)({"lr": 0.02, "weight_decay": 0.1}), modes=["compiled"], level=2)
    assert all(spec.update is svi._update for spec in svi._gradients.specializations)


def test_compiled_agrees_to_1e_5_in_the_first_step_and_1e_6_over_100_in_float64():
    class Double(Plain):
        def __init__(self):
            super().__init__()
            self.tensors = [torch.ones((), dtype=torch.float64)]

        def model(self, x):
            mu = pyro.param("mu", torch.tensor(0.5, dtype=torch.float64))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(mu, torch.ones((), dtype=torch.float64)))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            scale = pyro.param("scale", torch.tensor(1.0, dtype=torch.float64), constraint=constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, scale))

    ends = []
    for kind, more in ((pyro.infer.SVI, {}), (pa.SVI, {"compile": "compiled"})):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = kind(Double().model, Double().guide, adam(), Trace_ELBO(), **more)
        ends.append([svi.step(X.double()) for _ in range(100)])
    assert svi.levels()["step"][0][1] == 2 and ends[0] == pytest.approx(ends[1], rel=1e-6)


# --- the object ---


def test_arguments_attributes_and_results_are_pyros():
    names = [name for name in inspect.signature(pyro.infer.SVI.__init__).parameters if name not in ("self", "kwargs")]
    assert list(inspect.signature(pa.SVI.__init__).parameters)[1 : 1 + len(names)] == names
    programs, elbo, optim = Plain(), Trace_ELBO(), adam()
    svi = pa.SVI(programs.model, programs.guide, optim, elbo, None, 0, 0)
    assert svi.loss == elbo.loss and svi.loss_and_grads == elbo.loss_and_grads and svi.optim is optim
    loss = svi.step(X)
    assert json.dumps([loss, round(loss, 2), svi.evaluate_loss(x=X)]) and isinstance(svi, pyro.infer.SVI)
    with pytest.raises(ValueError, match="expected compile as"):
        pa.SVI(programs.model, programs.guide, optim, elbo, compile="fast")


@pytest.mark.filterwarnings("ignore:The .* is deprecated:FutureWarning")
def test_run_equals_pyros():
    def model():
        return pyro.sample("z", dist.Normal(pyro.param("mu", torch.tensor(0.0)), 1.0))

    guide = lambda: pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 1.0))  # noqa: E731
    svi = pa.SVI(model, guide, adam(), Trace_ELBO(), num_samples=3, num_steps=2).run()
    assert len(list(svi.exec_traces)) == 3 and pyro.param("loc").item() != 1.0


def test_it_can_be_pickled_and_continues():
    programs = Plain()
    again = pickle.loads(pickle.dumps(pa.SVI(programs.model, programs.guide, adam(), Trace_ELBO(), compile="traced")))
    assert all(isinstance(again.step(X), float) for _ in range(3)) and again.levels()["step"][0][1] == 1


def test_autoguides_and_priors_of_weights_are_traced():
    """Their distributions are built outside the programs, each with validation on."""

    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](1, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))

        def forward(self, x):
            mean = self.linear(x[:, None])[:, 0]
            with pyro.plate("data", len(x), subsample_size=20) as rows:
                pyro.sample("x", dist.Normal(mean[rows], 1.0), obs=x[rows])

    class Pair:
        def __init__(self):
            self.model = Regression()
            self.guide = AutoNormal(self.model)

    check(Pair, level=1)


def test_a_nan_gradient_equals_pyros(log):
    class Root(Plain):
        def guide(self, x):
            scale = pyro.param("scale", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, 1.0 + scale.clamp(min=0.0).sqrt()))

    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(Root, arguments=lambda step: ((X + (torch.nan if step == 5 else 0.0),), {}))


def test_cheap_programs_are_not_traced():
    svi = pa.SVI(Plain().model, Plain().guide, adam(), Trace_ELBO())
    for _ in range(10):
        svi.step(X)
    assert not svi.levels()["step"]


@pytest.mark.parametrize(
    "path, is_user",
    [
        ("/env/lib/python3.12/site-packages/torch/nn/modules/module.py", False),  # of an environment below this one
        ("/usr/lib/python3/dist-packages/torch/nn/modules/module.py", False),
        ("/home/me/packages/model.py", True),
        ("<stdin>", True),
    ],
)
def test_packages_of_any_environment_are_libraries(path, is_user):
    assert is_user_file(path) == is_user


def test_packages_in_a_folder_of_any_name_are_libraries(tmp_path, monkeypatch):
    """Installed by ``pip install --target``, as editable, or in an archive's folder."""
    folder = tmp_path / "layer" / "einops"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "layers.py"):
        (folder / name).touch()
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setattr(user_code, "_trusted_folders", user_code._trusted_folders.__wrapped__)
    monkeypatch.setattr(user_code, "is_user_file", is_user_file.__wrapped__)
    assert not user_code.is_user_file(str(folder / "layers.py")) and user_code.is_user_file(str(folder.parent / "mine.py"))


def test_settings_of_library_objects_are_guarded_and_their_caches_are_not():
    class Dropped(Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(1, 2), nn.Dropout(0.2))

    def change(programs, step):
        programs.train(step % 10 < 7)
        programs.net[1].p = 0.2 if step < 15 else 0.5

    check(Dropped, change=change, level=1)

    class Auto(Plain):  # its plates are made anew in every call
        def __init__(self):
            super().__init__()
            self.guide = AutoNormal(super().model)

    svi = pa.SVI(Auto().model, Auto().guide, adam(), Trace_ELBO(), compile="traced")
    for _ in range(5):
        svi.step(X)
    assert len(svi.levels()["step"]) == 1


def test_class_attributes_are_refused_like_those_of_objects(log):
    svi = pa.SVI(OfItsClass().model, Plain().guide, adam(), Trace_ELBO(), compile="traced")
    for _ in range(3):
        svi.step(X)
    assert "generator, a Generator, in which changes cannot be seen" in log()[0]


def losses_by(mode, make, calls):
    """Losses of calls of a new SVI, and the SVI."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    svi = make(mode)
    return [call(svi) for call in calls], svi


@pytest.mark.parametrize("mode", ["traced", "compiled"])
@pytest.mark.parametrize("method", ["step", "evaluate_loss"])
def test_arguments_that_an_autoguide_keeps_are_not_taken_for_others(method, mode, monkeypatch):
    """It keeps those of its first call, the object itself, so that a graph of them may read them there."""
    run_uncompiled(monkeypatch)

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    first, other = torch.zeros(30), torch.full((30,), 100.0)
    calls = [lambda svi, x=x: getattr(svi, method)(x) for x in [first] * 10 + [other] * 5 + [first] * 3 + [other] * 3]
    make = lambda mode: pa.SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO(), compile=mode)  # noqa: E731
    expected, _ = losses_by("eager", make, calls)
    found, svi = losses_by(mode, make, calls)
    assert found == pytest.approx(expected, rel=1e-4) and expected[10] > 1e5
    assert all(level > 0 for _, level, _ in svi.levels()["step" if method == "step" else "loss"])


@pytest.mark.parametrize("mode", ["auto", "traced", "compiled"])
def test_parameters_that_an_optimizer_is_given_later_are_trained(mode, monkeypatch):
    run_uncompiled(monkeypatch)
    x = (torch.rand(8, 64, generator=torch.Generator().manual_seed(1)) < 0.3).float()

    def make(mode):
        ae = small_vae()
        svi = pa.SVI(ae.model, ae.guide, torch.optim.Adam(ae.decoder.parameters(), lr=1e-2), TraceMeanField_ELBO(), compile=mode)
        svi.later = list(ae.encoder.parameters())
        return svi

    step = lambda svi: svi.step(x)  # noqa: E731
    give = lambda svi: svi.optim.add_param_group({"params": svi.later}) or step(svi)  # noqa: E731
    expected, eager = losses_by("eager", make, [*[step] * 10, give, *[step] * 20])
    found, svi = losses_by(mode, make, [*[step] * 10, give, *[step] * 20])
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(svi.later, eager.later))


@pytest.mark.parametrize("mode", ["eager", "traced"])
@pytest.mark.parametrize("form", ["x, y", "tuple", "dictionary", "keywords", "number"])
def test_micro_batches_are_parts_of_all_tensors_with_as_many_rows(form, mode):
    x, y, weights = X.clone(), X.square(), torch.linspace(0.5, 1.0, 3)
    args, kwargs = {
        "x, y": ((x, y, weights), {}),
        "tuple": (((x, y), None, weights), {}),
        "dictionary": (({"x": x, "y": y}, None, weights), {}),
        "keywords": ((), {"x": x, "y": y, "weights": weights}),
        "number": ((x, y, torch.tensor(2.0)), {}),
    }[form]

    def model(x, y=None, weights=None):
        if not isinstance(x, torch.Tensor):
            x, y = x.values() if isinstance(x, dict) else x
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x * weights.sum(), 1.0), obs=y)

    def make(step):
        return pa.SVI(model, lambda *args, **kwargs: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), compile=step)

    calls = [lambda svi: svi.step(*args, **kwargs)] * 6
    expected, _ = losses_by("eager", make, calls)
    for n, clip in ((2, None), (7, None), (2, 1e6)):
        assert losses_by(pa.Step(mode, accumulate=n, clip=clip), make, calls)[0] == pytest.approx(expected, rel=1e-5)


def test_micro_batches_and_clipping_need_rows():
    def model(n):
        pyro.sample("x", dist.Normal(pyro.param("mu", torch.tensor(0.5)), 1.0), obs=torch.tensor(float(n)))

    for step in (pa.Step("eager", clip=1.0), pa.Step("eager", accumulate=2)):
        svi = pa.SVI(model, lambda n: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), compile=step)
        with pytest.raises(ValueError, match="expected a tensor with a row for each example"):
            svi.step(3)

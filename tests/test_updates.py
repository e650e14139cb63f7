"""Adam inside a compiled graph equals torch's Adam."""

import copy

import pytest
import torch
from conftest import run_uncompiled, small_vae
from pyro.infer import TraceMeanField_ELBO
from torch import nn

import pyroae as pa

STEPS = 12


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch, request):
    """Run the graph without a compiler, except in slow tests."""
    if "slow" not in request.keywords:
        run_uncompiled(monkeypatch)


def trained(mode, make_optimizer, x, change=lambda svi, step: None, **more):
    """Losses, parameters, gradients and the optimizer's state after some steps, and the SVI."""
    torch.manual_seed(0)
    ae = small_vae().train()
    svi = pa.SVI(ae.model, ae.guide, make_optimizer(list(ae.parameters())), TraceMeanField_ELBO(), compile=pa.Step(mode, **more))
    losses = []
    for step in range(STEPS):
        change(svi, step)
        losses.append(svi.step(x))
    left = [value for p in ae.parameters() for value in (p.detach(), *svi.optim.state[p].values())]
    assert all(p.grad is None for p in ae.parameters())
    return [torch.tensor(losses), *(torch.as_tensor(each) for each in left if each is not None)], svi


def check(make_optimizer, x, change=lambda svi, step: None, inside=True, **more):
    eager, _ = trained("eager", make_optimizer, x, change, **more)
    compiled, svi = trained("compiled", make_optimizer, x, change, **more)
    specializations = svi._gradients.specializations
    assert {(spec.level, bool(spec.update)) for spec in specializations} == {(2, inside)}
    for a, b in zip(eager, compiled, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, a.abs().max().item()))
    return len(specializations)


def two_groups(parameters):
    return torch.optim.Adam([{"params": parameters[:3], "lr": 0.1}, {"params": parameters[3:], "weight_decay": 0.3}], lr=0.01)


OPTIMIZERS = {
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "other numbers": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9), eps=1e-2),
    "AMSGrad with decay": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3, fused=True),
    "upwards": lambda p: torch.optim.Adam(p, lr=0.001, maximize=True),
    "a rate that is a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), fused=True),
    "two groups": two_groups,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_adam_inside_the_graph_equals_adam(name, digits):
    assert check(OPTIMIZERS[name], digits.test.x[:16]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AMSGrad with decay", "two groups"])
def test_so_does_adam_compiled_by_inductor(name, digits):
    assert check(OPTIMIZERS[name], digits.test.x[:16]) == 1


def loading(svi, step):
    if step == 6:
        svi.optim.load_state_dict(copy.deepcopy(svi.optim.state_dict()))


def frozen(svi, step):
    svi.parameters[0].requires_grad_(not 4 <= step < 8)


def cycling(svi, step):
    """As OneCycleLR does."""
    svi.optim.param_groups[0].update(lr=0.01 * (1 + step), betas=(0.9 - 0.02 * step, 0.999), weight_decay=0.1 * step, eps=1e-8 + step)


def zeroing(svi, step):
    svi.optim.zero_grad()


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
@pytest.mark.parametrize("change, specializations", [(loading, 1), (frozen, 2), (cycling, 1), (zeroing, 1)])
def test_changes_of_the_optimizer_between_steps(change, specializations, digits):
    assert check(OPTIMIZERS["fused"], digits.test.x[:16], change) == specializations


def hooked(parameters):
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_value_(parameters, 0.1) and None)
    return optimizer


def replaced(parameters):
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    optimizer.step = lambda step=optimizer.step: (nn.utils.clip_grad_value_(parameters, 0.1), step())
    return optimizer


OUTSIDE = {
    "a hook": (hooked, {}),
    "another step": (replaced, {}),
    "another optimizer": (lambda p: torch.optim.RMSprop(p, lr=0.01), {}),
    "clip": (OPTIMIZERS["fused"], {"clip": 0.1}),
    "accumulate": (OPTIMIZERS["fused"], {"accumulate": 2}),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_other_optimizers_stay_outside_the_graph(name, digits):
    make_optimizer, more = OUTSIDE[name]
    check(make_optimizer, digits.test.x[:16], inside=False, **more)


def test_a_scheduler_sees_its_steps(digits, recwarn):
    def change(svi, step):
        svi.cosine = getattr(svi, "cosine", None) or torch.optim.lr_scheduler.CosineAnnealingLR(svi.optim, STEPS)
        if step:
            svi.cosine.step()

    check(OPTIMIZERS["fused"], digits.test.x[:16], change)
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


def test_a_graph_that_differs_is_rejected(digits, monkeypatch, caplog):
    run_uncompiled(monkeypatch, change=lambda result: result * 1.1)
    svi = trained("compiled", OPTIMIZERS["fused"], digits.test.x[:16])[1]
    assert [(spec.level, spec.update) for spec in svi._gradients.specializations] == [(1, None)] and "does not repeat it" in caplog.text
    eager, traced = (trained(mode, OPTIMIZERS["fused"], digits.test.x[:16])[0] for mode in ("eager", "compiled"))
    assert all(a.equal(b) for a, b in zip(eager, traced, strict=True))


@pytest.mark.parametrize("at", range(6))
def test_gradients_from_before_a_step_are_added_to_its_own(at, digits):
    """Also in the steps that build or prove the graph."""

    def change(svi, step):
        if step == at:
            for parameter in svi.parameters:
                parameter.grad = torch.full_like(parameter, 3.0)

    check(OPTIMIZERS["fused"], digits.test.x[:16], change)

"""CUDA graphs of steps: when they are recorded, how often, and what is refused, with a stand-in on a CPU."""

import contextlib
import copy
import functools
import logging
from importlib import import_module

import pyro
import pytest
import torch
from conftest import small_vae
from pyro import distributions as dist
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from tape import Tape, record_on_cpu
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

import pyroae as pa
from pyroae.training import devices, distributed
from pyroae.training.step import graph as graphs
from pyroae.training.step import proof, recording, svi, timing
from pyroae.training.step.graph import Graph
from pyroae.training.step.specialization import Specialization

X = torch.rand(60, 64, generator=torch.Generator().manual_seed(0)).round()


@pytest.fixture
def recorded(monkeypatch):
    """Record steps as on CUDA."""
    return record_on_cpu(monkeypatch)


def trained(**options) -> list[float]:
    torch.manual_seed(0)
    options = {"batch_size": 20, "epochs": 12, "elbo": Trace_ELBO, "compile": "traced"} | options
    return pa.fit(small_vae(), X, seed=0, progress=False, **options | {"elbo": options["elbo"]()}).loss


RECORDED = {  # options of fit, how many recordings it takes, and how many of 36 steps they run
    "Adam": ({}, 1, 29),
    "a short batch": ({"batch_size": 25}, 2, 25),
    "Adam by its class": ({"optimizer": torch.optim.Adam}, 1, 29),
    "AdamW": ({"optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.1)}, 1, 29),
    "SGD": ({"optimizer": torch.optim.SGD, "lr": 1e-4}, 1, 29),
    "SGD with momentum": ({"optimizer": functools.partial(torch.optim.SGD, momentum=0.9), "lr": 1e-5}, 1, 29),
    "clipped": ({"compile": pa.Step("traced", clip=0.5)}, 1, 29),
    "micro-batches": ({"compile": pa.Step("traced", accumulate=2, clip=0.5)}, 1, 30),
    "a KL's weight that moves": ({"elbo": lambda: pa.objectives.Tempered(pa.schedules.Linear(30, start=0.1))}, 1, 29),
    "a cosine": ({"scheduler": functools.partial(lr_scheduler.CosineAnnealingLR, T_max=12)}, 1, 29),
    "one cycle": ({"scheduler": functools.partial(lr_scheduler.OneCycleLR, max_lr=1e-2, total_steps=13)}, 2, 4),
    "one cycle of the rate alone": (
        {"scheduler": functools.partial(lr_scheduler.OneCycleLR, max_lr=1e-2, total_steps=13, cycle_momentum=False)},
        1,
        29,
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_run_equals_the_run(name, recorded):
    options, times, replays = RECORDED[name]
    losses = trained(**options)
    assert (len(recorded), sum(tape.replays for tape in recorded)) == (times, replays)
    recorded.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svi, "_on_gpu", lambda args: False)
        assert trained(**options) == pytest.approx(losses, rel=1e-6)  # a rate on the device is in float32
    assert recorded == []


def stepping(make=functools.partial(torch.optim.Adam, lr=1e-2), sync=False, **parts):
    torch.manual_seed(0)
    ae = small_vae(**parts)
    return ae, pa.SVI(ae.model, ae.guide, make(ae.parameters()), Trace_ELBO(), compile="traced", sync=sync)


def take(steps, svi, x=X):
    return [float(svi.step(x)) for _ in range(steps)]


def replaced_state(ae, steps):
    steps.optim.load_state_dict(copy.deepcopy(steps.optim.state_dict()))


def replaced_parameter(ae, steps):
    ae.decoder[0].weight.data = ae.decoder[0].weight.data.clone()


def replaced_buffer(ae, steps):
    ae.prior.scale.data = 2 * ae.prior.scale.data


@pytest.mark.parametrize("options", [{}, {"clip": 0.5, "accumulate": 2}], ids=["plain", "clipped micro-batches"])
def test_replays_where_nothing_changes_compare_once(options, recorded, monkeypatch):
    """The same losses and proofs as with every comparison, for batches of two sizes."""
    compared, ends = [], []
    matches = Specialization.matches
    monkeypatch.setattr(Specialization, "matches", lambda self, leaves: (compared.append(1), matches(self, leaves))[1])
    for is_unchanged in (False, True):
        compared.clear()
        torch.manual_seed(0)
        ae = small_vae()
        optimizer = torch.optim.Adam(ae.parameters(), lr=1e-2)
        steps = pa.SVI(ae.model, ae.guide, optimizer, TraceMeanField_ELBO(), compile=pa.Step("traced", **options), sync=False)
        losses = []
        for lr in (1e-2, 1e-3):
            optimizer.param_groups[0]["lr"] = lr
            with steps.unchanged() if is_unchanged else contextlib.nullcontext():
                losses += [float(steps.step(x)) for x in [*torch.rand(20, 40, 64).round(), *torch.rand(4, 10, 64).round()]]
        ends.append((losses, steps.levels(), len(recorded), len(compared)))
        recorded.clear()
    assert ends[0][:3] == ends[1][:3] and len(set(losses)) == 48
    assert ends[1][3] < 0.6 * ends[0][3]


@pytest.mark.parametrize("change", [replaced_state, replaced_parameter, replaced_buffer])
def test_replaced_tensors_lead_to_a_new_recording(change, recorded):
    losses = []
    for on_gpu in (False, True):
        ae, steps = stepping()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(svi, "_on_gpu", lambda args, on_gpu=on_gpu: on_gpu)
            losses.append(take(6, steps))
            change(ae, steps)
            losses[-1] += take(6, steps)
    assert len(recorded) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_step_counts_move_from_the_cpu_to_the_device(recorded):
    ae, steps = stepping()
    take(6, steps)
    assert all(held["step"].device == p.device for p, held in steps.optim.state.items())
    assert len(recorded) == 1 and not any(group["capturable"] for group in steps.optim.param_groups)  # the person's own are restored


NOT_RECORDED = {
    "one of Pyro's": (lambda ae: pyro.optim.Adam({"lr": 1e-2}), "Pyro's optimizers take their step in Python"),
    "another of torch's": (lambda ae: torch.optim.RMSprop(ae.parameters()), "expected Adam, AdamW or SGD of torch's, got RMSprop"),
    "a rate as a tensor": (
        lambda ae: torch.optim.Adam(ae.parameters(), lr=torch.tensor(1e-2), foreach=False),
        "the learning rate is a tensor; give a number",
    ),
}


@pytest.mark.parametrize("name", NOT_RECORDED)
def test_the_reason_against_recording_is_logged_once(name, recorded, caplog):
    make, words = NOT_RECORDED[name]
    torch.manual_seed(0)
    ae = small_vae()
    steps = pa.SVI(ae.model, ae.guide, make(ae), Trace_ELBO(), compile="traced")
    with caplog.at_level(logging.WARNING, "pyroae"):
        take(8, steps)
    assert recorded == [] and [words in message for message in caplog.messages if "CUDA graph" in message] == [True]


def test_a_hook_that_is_added_runs(recorded, caplog):
    ae, steps = stepping()
    take(6, steps)
    ran = []
    steps.optim.register_step_post_hook(lambda *_: ran.append(1))
    take(6, steps)
    assert len(recorded) == 1 and len(ran) == 6 and "hooks or wraps" in caplog.text


def test_beta_is_on_the_device_of_the_parameters():
    beta = pa.objectives.Tempered(pa.schedules.Linear(10))
    pa.SVI(lambda x: None, lambda x: None, torch.optim.SGD([torch.zeros(3, device="meta")], lr=1.0), beta)
    assert beta.beta.device.type == "meta"


def test_existing_gradients_are_added(recorded):
    ends = []
    for on_gpu in (True, False):
        ae, steps = stepping()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(svi, "_on_gpu", lambda args, on_gpu=on_gpu: on_gpu)
            losses = take(6, steps)
            ae.decoder[0].weight.grad = torch.ones_like(ae.decoder[0].weight)
            ends.append(losses + take(3, steps))
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)


def test_a_failed_recording_is_logged_and_the_step_runs(recorded, monkeypatch, caplog):
    def fails(*args):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recording, "Recording", fails)
    ae, steps = stepping()
    assert len(take(8, steps)) == 8 and caplog.text.count("not permitted when stream is capturing") == 1
    assert steps.optim.param_groups[0]["lr"] == 1e-2 and steps.optim.param_groups[0]["capturable"] is False


def test_validation_after_forget_is_accumulated_outside_a_recording(recorded):
    ae, steps = stepping()
    take(6, steps)
    steps.forget()
    count = len(recorded)
    steps.step(X)
    assert len(recorded) == count  # the first step afterwards runs as it is
    take(2, steps)
    assert len(recorded) == count + 1 and steps.valid()


def test_synchronous_validation_is_read_between_two_recordings(recorded):
    ae, steps = stepping(sync=True)
    losses = take(6, steps)
    assert [tape.replays for tape in recorded] == [2, 2] and len(set(losses)) == 6
    with torch.no_grad():
        ae.decoder[0].bias.fill_(torch.nan)
    before = [p.clone() for p in ae.parameters()]
    with pytest.raises(ValueError, match="logits"):
        steps.step(X)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, ae.parameters()))


class Counting(torch.nn.Module):
    """A network with a running mean in an attribute that it replaces."""

    def __init__(self):
        super().__init__()
        self.linear, self.mean = torch.nn.Linear(64, 8), torch.zeros(8)

    def forward(self, x):
        h = self.linear(x)
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return h - self.mean


def test_a_program_that_replaces_a_tensor_in_every_call_is_not_recorded(recorded):
    torch.manual_seed(0)
    ae = pa.Autoencoder(pa.priors.Normal(4), pa.likelihoods.Bernoulli(64), pa.posteriors.Normal(), Counting(), pa.nets.MLP(16)).train()
    steps = pa.SVI(ae.model, ae.guide, torch.optim.Adam(ae.parameters()), Trace_ELBO(), compile="traced")
    take(6, steps)
    assert recorded == []


def test_a_recorded_program_is_proved_again(recorded, caplog):
    ae, steps = stepping()
    take(6, steps)
    ae.decoder[0].forward = functools.partial(torch.nn.functional.linear, weight=2 * ae.decoder[0].weight.detach())
    take(3, steps)
    assert [tape.replays for tape in recorded] == [4] and "after 8 calls its graph no longer repeats it" in caplog.text


def test_a_step_that_reads_a_tensor_on_the_cpu_is_not_recorded(recorded, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(svi, "_on_gpu", lambda args: True)  # but no tensor is
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    ae, steps = stepping()
    take(8, steps)
    assert Tape.made == []


@pytest.mark.parametrize("device, kept", [("cpu", True), ("cuda", False)])
def test_checks_of_decompositions_wait_for_no_gpu(device, kept, monkeypatch):
    monkeypatch.setattr(graphs, "_shared_fake_mode", contextlib.nullcontext)
    with FakeTensorMode():
        x = torch.empty(3, 3, device=device)
        graph = Graph(lambda: [torch.linalg.cholesky(x)], [x])
    targets = [node.target for node in graph.module.graph.nodes]
    assert (torch.ops.aten._linalg_check_errors.default in targets) == kept
    assert torch.ops.aten.linalg_cholesky_ex.default in targets


def test_a_device_without_kernels_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "_runs_kernels", lambda device: False)
    assert devices.resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="device: cuda:1 is not supported by torch"):
        devices.resolve_device("cuda:1")
    monkeypatch.setattr(devices, "_runs_kernels", lambda device: True)
    assert devices.resolve_device("auto") == torch.device("cuda")


def test_data_on_the_cpu_are_sent_from_pinned_memory(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    with FakeTensorMode():
        assert devices.to_device(torch.empty(3), torch.device("cuda")).device.type == "cuda"
        assert devices.to_device(torch.empty(3, device="cuda"), torch.device("cuda")).device.type == "cuda"
    assert len(pinned) == 1 and devices.to_device(X, torch.device("cpu")) is X


@pytest.mark.parametrize("device, rounding", [("cpu", 1e-5), ("cuda", 1e-4)])
def test_a_proof_on_a_gpu_tolerates_another_order_of_sums(device, rounding):
    with FakeTensorMode():
        assert proof.tolerance(torch.empty(3, device=device), 1e-5) == rounding


def test_a_failed_capture_restores_the_stream(recorded, monkeypatch, caplog):
    streams = []
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(Tape, "__torch_dispatch__", lambda *_: 1 / 0)
    ae, steps = stepping()
    take(4, steps)
    assert streams == [None] and recorded[0].operations == [] and "division by zero" in caplog.text


def test_a_proof_of_rounded_products_compares_norms():
    """Gradients of a VAE whose products round their operands to 10 bits, as TF32 does; another weight of the KL is seen."""
    torch.manual_seed(0)
    ae, x = small_vae(), torch.rand(128, 64).round()

    class Rounding(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                args = [((a.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) for a in args]
            return func(*args, **(kwargs or {}))

    def gradients(elbo, mode):
        pyro.set_rng_seed(1)
        with mode:
            return torch.autograd.grad(elbo.differentiable_loss(ae.model, ae.guide, x), list(ae.parameters()))

    exact, rounded = (gradients(TraceMeanField_ELBO(), mode) for mode in (contextlib.nullcontext(), Rounding()))
    other = gradients(pa.objectives.Tempered(0.5), contextlib.nullcontext())
    agree = lambda theirs, rounds: all(proof._agree(a, b, 1e-2, rounds) for a, b in zip(exact, theirs))
    assert agree(rounded, True) and not agree(rounded, False) and not agree(other, True)
    assert agree([torch.where(g > 0, g, g) for g in exact], True) and not agree([g + torch.nan for g in exact], True)


def test_recordings_share_memory_and_run_on_the_parameters_device(recorded, monkeypatch):
    pools, used = [], set()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: pools.append(1))
    monkeypatch.setattr(torch.cuda, "device", lambda device: used.add(device) or contextlib.nullcontext())
    ae, steps = stepping()
    take(6, steps)
    take(6, steps, X[:30])
    assert len(recorded) == 2 and pools == [1] and used == {ae.device}


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_other_devices_are_refused(device):
    with pytest.raises(
        ValueError, match=f"device: expected 'auto', 'cpu' or 'cuda', got '{device}'" + ("; Apple" if device == "mps" else "")
    ):
        pa.fit(small_vae(), X, device=device)


ENVIRONMENTS = {  # GPUs that a process sees, what its launcher sets, its own GPU
    "torchrun, 4 GPUs": (4, {"RANK": "6", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}, 2),
    "torchrun in Slurm, a GPU shown to each task": (1, {"RANK": "6", "LOCAL_RANK": "2", "SLURM_LOCALID": "2"}, 0),
    "a PyTorchJob of Kubernetes, a process in each pod": (1, {"RANK": "6", "PET_NNODES": "8"}, 0),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_each_process_takes_a_visible_gpu(name, monkeypatch):
    shown, variables, own = ENVIRONMENTS[name]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: shown)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert distributed._local_gpu() == own


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="a GPU for each process of a machine, got LOCAL_RANK=2 and 2 GPUs"):
        distributed._local_gpu()


def test_plain_functions_are_trained_on_the_cpu(monkeypatch):
    monkeypatch.setattr(import_module("pyroae.training.fit"), "resolve_device", lambda device: torch.device("cuda"))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("recording_loc", torch.tensor(0.0)), 1.0), obs=x)

    pa.fit(model, torch.randn(20), guide=lambda x: None, elbo=Trace_ELBO(), epochs=2, progress=False)
    assert pyro.param("recording_loc").device.type == "cpu"


def test_the_backward_pass_is_traced_in_the_thread_of_the_trace():
    seen, x = [], torch.ones(3, requires_grad=True)

    class Noting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append(torch.autograd.is_multithreading_enabled())
            return gradient

    def gradients():
        loss = Noting.apply(x).sum()
        loss.backward()
        gradient, x.grad = x.grad, None
        return [gradient]

    Graph(gradients, [x])
    assert seen and not any(seen)


def test_a_gpu_is_not_waited_for_once_enough_calls_were_timed(monkeypatch):
    waited, gpu = [], torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    times = timing.CallTimes(timing.TimeBudget())

    def call(builds=False):
        start = times.begin(0.0, gpu)
        if builds:
            times.excluded = True
            times.start_level(10)
        times.end(start, gpu)
        return len(waited)

    counts = [call() for _ in range(timing.MIN_TIMED + 2)]
    mean, spent = times.mean, times.budget.spent
    assert counts == [min(2 * n, 2 * timing.MIN_TIMED) for n in range(1, len(counts) + 1)]
    assert spent == pytest.approx((timing.MIN_TIMED + 2) * mean)
    assert call(builds=True) == counts[-1] + 1 and times.budget.spent > spent  # a graph's building is timed
    assert call() == counts[-1] + 3 and times.timed == 1  # and so are the first calls of the graph


def test_gpu_calls_are_timed_after_synchronization(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    timing.clock()
    timing.clock(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]

"""The checks of smoke_gpu.py: functions of a device and their row of the table."""

import contextlib
import functools
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from reporting import surroundings
from torch import Tensor
from torch.optim import lr_scheduler

import pyroae as pa
from pyroae.training.step import recording

NOT_RUN = "not run on CUDA"
Makes = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass
class Row:
    """What a check found."""

    name: str
    ok: str = "yes"
    ms: float | None = None  # for a step
    captures: int | None = None  # of CUDA graphs
    peak: float | None = None  # MB
    note: str = ""
    warned: list[str] = field(default_factory=list)


class NotRun(Exception):
    """A check that needs what this machine lacks."""


def need(sound: bool, what: str):
    """Leave the check, and say what it needs."""
    if not sound:
        raise NotRun(what)


def data(device: torch.device, rows: int = 1280) -> Tensor:
    return torch.rand(rows, 784, generator=torch.Generator().manual_seed(0)).round().to(device)


def autoencoder(device: torch.device, **parts) -> pa.Autoencoder:
    torch.manual_seed(0)
    usual = {"prior": pa.priors.Normal(20), "likelihood": pa.likelihoods.Bernoulli(784), "posterior": pa.posteriors.Normal()}
    networks = {"encoder": pa.nets.MLP(400), "decoder": pa.nets.MLP(400)}
    return pa.Autoencoder(**usual | networks | parts).to(device).train()


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def steps(
    device,
    compile: str,
    n: int = 24,
    make: Makes = adam,
    change: Callable | None = None,
    elbo=None,
    row: Row | None = None,
    options: dict = {},
    **parts,
) -> list[float]:
    """The losses of ``n`` steps from one seed; with a row, what a step takes. ``change(ae, svi)`` happens in the middle."""
    ae = autoencoder(device, **parts)
    x = data(device, 128).reshape(128, *ae.likelihood.event_shape)
    settings = {"compile": compile, "sync": False} | options
    svi = pa.SVI(ae.model, ae.guide, make(list(ae.parameters())), elbo or Trace_ELBO(), **settings)
    pyro.set_rng_seed(1)
    losses, begin = [], 0.0
    for i in range(n):
        if i == n // 2:
            if change:
                change(ae, svi)
            _wait(device)
            begin = time.perf_counter()
        losses.append(svi.step(x))
    _wait(device)
    if row is not None:
        row.ms = (time.perf_counter() - begin) / (n - n // 2) * 1e3
        row.captures = sum(svi._recorder.settings.values()) if device.type == "cuda" else None
    return [float(loss) for loss in losses]


def same(ours: list[float], theirs: list[float], what: str = "") -> None:
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))
    assert worst < 1e-2, f"{what} differs by {worst:.1e}"
    assert len(set(ours)) == len(ours), f"{what}: losses repeat, so noise or weights stand still"


def every(checks: dict[str, Callable[[], None]]) -> str:
    """Run all of them, whatever the others do; how many there are, or an error that names those that fail."""
    failed = {}
    for name, check in checks.items():
        try:
            check()
        except TimeoutError:
            raise
        except Exception as error:  # whatever it is
            traceback.print_exc()
            failed[name] = f"{name}: {type(error).__name__}: {error}"[:100]
    assert not failed, "; ".join(failed.values())
    return f"{len(checks)} of them"


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- checks: functions of the device and their row ---


def a_kernel(device, row):
    assert (torch.ones(2, device=device) + 1).sum().item() == 4
    row.note = surroundings(device)["machine"]


PARTS = {
    "Laplace prior": {"prior": pa.priors.Laplace(20)},
    "GaussianMixture prior": {"prior": pa.priors.GaussianMixture(20, components=5)},
    "VampPrior": {"prior": pa.priors.VampPrior(20, components=5)},
    "Flow prior": {"prior": pa.priors.Flow(20)},
    "Normal likelihood": {"likelihood": pa.likelihoods.Normal(784)},
    "ContinuousBernoulli likelihood": {"likelihood": pa.likelihoods.ContinuousBernoulli(784)},
    "LogisticMixture likelihood": {"likelihood": pa.likelihoods.LogisticMixture(784)},
    "Flow posterior": {"posterior": pa.posteriors.Flow()},
    "LowRankNormal posterior": {"posterior": pa.posteriors.LowRankNormal()},
    "Uniform and Delta": {"prior": pa.priors.Uniform(20), "posterior": pa.posteriors.Delta()},
}


def every_part(device, row):

    def alike(parts):
        a, b = (steps(device, how, 6, **parts) for how in ("eager", "traced"))
        assert max(abs(x - y) / abs(y) for x, y in zip(a, b)) < 1e-2, "traced is not eager"

    row.note = every({name: functools.partial(alike, parts) for name, parts in PARTS.items()})


def recorded(device, row):
    same(steps(device, "traced", row=row), steps(device, "eager"), "a recorded step")


def step_options(device, row):
    """Clipped gradients and micro-batches in one graph; a step that reads what validation found, in two."""
    for options in ({"clip": 0.5, "accumulate": 2}, {}):
        ends = [
            steps(device, mode, row=row, options={"compile": pa.Step(mode, **options), "sync": not options}) for mode in ("eager", "traced")
        ]
        same(*ends[::-1], str(options))


def silent(device, row):
    need(device.type == "cuda", "a wait for the device is seen on CUDA only")
    ae, x = autoencoder(device), data(device, 128)
    svi = pa.SVI(ae.model, ae.guide, adam(list(ae.parameters())), TraceMeanField_ELBO(), compile="traced", sync=False)
    for _ in range(10):
        svi.step(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        svi.step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def schedules(device, row):
    makes = {
        "cosine": functools.partial(lr_scheduler.CosineAnnealingLR, T_max=8),
        "one cycle": functools.partial(lr_scheduler.OneCycleLR, max_lr=1e-2, total_steps=9),
    }
    for name, make in makes.items():
        with counting() as captures:
            pa.fit(autoencoder(device), data(device), epochs=8, scheduler=make, device=str(device), compile="traced", progress=False)
        row.captures = captures[0] if device.type == "cuda" else None
        assert captures[0] <= 2, f"{name}: {captures[0]} captures"


def optimizers(device, row):
    makes = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "SGD": functools.partial(torch.optim.SGD, lr=1e-5)}
    for name, make in makes.items():
        with counting() as captures:
            same(steps(device, "traced", make=make), steps(device, "eager", make=make), name)
        assert device.type == "cpu" or captures[0] == 1, f"{name}: {captures[0]} captures"


def replaced_state(ae, svi):
    svi.optim.load_state_dict({**svi.optim.state_dict(), "state": {
        i: {name: value.clone() for name, value in held.items()} for i, held in svi.optim.state_dict()["state"].items()
    }})  # fmt: skip


def added_hook(ae, svi):
    svi.optim.register_step_pre_hook(lambda *_: None)


def replaced_weight(ae, svi):
    ae.decoder[0].weight.data = ae.decoder[0].weight.data.clone()


def changes(device, row):
    for change in (replaced_state, added_hook, replaced_weight):
        same(steps(device, "traced", change=change), steps(device, "eager", change=change), change.__name__)


def low_rank(device, row):
    same(steps(device, "traced", posterior=pa.posteriors.LowRankNormal()), steps(device, "eager", posterior=pa.posteriors.LowRankNormal()))
    pa.fit(autoencoder(device), data(device), epochs=1, device=str(device), progress=False)  # and nothing is left behind


def precisions(device, row):
    for precision in ("highest", "high", "bf16"):
        history = pa.fit(
            autoencoder(device), data(device), epochs=2, device=str(device), compile=pa.Step(precision=precision), progress=False
        )
        assert history.loss[-1] < history.loss[0], precision


def tf32(device, row):
    matmul = torch.backends.cuda.matmul
    for choose in (lambda: torch.set_float32_matmul_precision("high"), lambda: setattr(matmul, "fp32_precision", "tf32")):
        before = matmul.fp32_precision
        try:
            choose()
            pa.fit(autoencoder(device), data(device), epochs=1, device=str(device), progress=False)
            assert matmul.fp32_precision == "tf32"
        finally:
            torch.set_float32_matmul_precision("highest")
            matmul.fp32_precision = before


def another_gpu(device, row):
    need(device.type == "cuda" and torch.cuda.device_count() > 1, "needs two GPUs")
    other = torch.device("cuda", 1)
    same(steps(other, "traced", row=row), steps(other, "eager"))


def resumed(device, row):
    need(device.type == "cuda", "CPU to CUDA and back")
    with tempfile.TemporaryDirectory() as folder:
        run = {"epochs": 1}
        for place in ("cpu", "cuda", "cpu"):
            kept = pa.Run(folder, resume=run["epochs"] > 1)
            pa.fit(autoencoder(torch.device("cpu")), data(torch.device("cpu")), device=place, seed=0, progress=False, run=kept, **run)
            run["epochs"] += 1


def many_particles(device, row):
    n = 20 if device.type == "cuda" else 2
    values = pa.log_likelihood(autoencoder(device), data(torch.device("cpu"), n), particles=5000, proposal="guide").values
    assert values.isfinite().all()
    if device.type == "cuda":
        assert torch.cuda.max_memory_allocated(device) < 8e9


def streamed(device, row):
    from pyroae.training import batches

    fits, batches.fits_on_device = batches.fits_on_device, lambda *_: False
    try:
        pa.fit(autoencoder(device), data(torch.device("cpu")), epochs=2, device=str(device), progress=False)
    finally:
        batches.fits_on_device = fits


def processes(device, row):
    with tempfile.TemporaryDirectory() as folder:
        for n in (1, 2) if device.type == "cpu" or torch.cuda.device_count() > 1 else (1,):
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "-m", "pyroae", "train"]
            command += ["--epochs", "1", "--particles", "5", "--hidden", "16", "--device", device.type, "--out", f"run{n}"]
            _call(command, folder)


def tests(device, row):
    need(device.type == "cuda", "uv run pytest -m gpu")
    root = Path(__file__).parents[2]
    files = [str(path) for path in sorted(root.glob("tests/test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    row.note = _call([sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", *files], root).splitlines()[-1]


def compiled(device, row, **options):
    same(steps(device, "compiled", row=row, **options), steps(device, "eager", **options))


COMPILED = {
    "MLP": {},
    "Conv": {
        "likelihood": pa.likelihoods.Bernoulli((1, 28, 28)), "encoder": pa.nets.Conv([8]), "decoder": pa.nets.Deconv([8])
    },
    "VampPrior": PARTS["VampPrior"],
    "IWAE": {"elbo": pa.objectives.IWAE(5)},
    "dropout": {"encoder": pa.nets.MLP(400, dropout=0.2)},
}  # fmt: skip


def _call(command: list[str], folder) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
    assert done.returncode == 0, (done.stdout + done.stderr)[-500:]
    return done.stdout.strip()


@contextlib.contextmanager
def counting() -> Iterator[list[int]]:
    """How often a step is recorded."""
    captures, make = [0], recording.Recording

    def counted(*args):
        captures[0] += 1
        return make(*args)

    recording.Recording = counted
    try:
        yield captures
    finally:
        recording.Recording = make

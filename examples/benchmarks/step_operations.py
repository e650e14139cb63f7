"""The operations of a training step as it runs on CUDA: where each runs, and whether the host waits for it. Nothing is timed.

uv run python examples/benchmarks/step_operations.py
uv run python examples/benchmarks/step_operations.py --hidden "[500,500]" --latent_dim 50 --batch_size 512

No GPU is needed. Steps are taken on the CPU as ``pa.fit`` takes them, traced, with CUDA's graphs left out; then the graph of
loss and gradients is run on fake CUDA tensors, and the optimizer's part of the graph, and what the host calls in every step,
are noted as they run on the CPU.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from unittest import mock

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from reporting import markdown, write
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import pyroae as pa
from pyroae.training import batches
from pyroae.training.step import specialization, svi

READS = {"aten._local_scalar_dense", "aten.nonzero", "aten._linalg_check_errors"}
ALLOCATIONS = {"aten.empty", "aten.empty_like", "aten._unsafe_view", "aten.detach"}


class Operations(TorchDispatchMode):
    """Counts operations by name, where they run and whether the host waits for them."""

    def __init__(self):
        super().__init__()
        self.found: Counter[tuple[str, str, str]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        name = str(func).rpartition(".")[0]
        if not name.startswith("aten."):
            return results
        devices = {t.device.type for t in tree_leaves((args, kwargs, results)) if isinstance(t, torch.Tensor) and t.dim()}
        waits = name in READS or len(devices) > 1
        where = "copy to the host" if waits else "no kernel" if func.is_view or name in ALLOCATIONS else "kernel on the GPU"
        self.found[name.removeprefix("aten."), where, "yes" if waits else "no"] += 1
        return results


class NoGraph:
    """In the place of ``torch.cuda.CUDAGraph`` and of its capture: the step runs once, and a replay does nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def replay(self):
        """Where CUDA launches the graph."""


@contextlib.contextmanager
def as_on_cuda():
    """Steps on the CPU go the way of those on CUDA."""
    with contextlib.ExitStack() as stack:
        stand_ins = {"CUDAGraph": NoGraph, "graph": lambda graph, **_: graph, "device": lambda _: contextlib.nullcontext()}
        stand_ins |= dict.fromkeys(("current_stream", "graph_pool_handle", "Stream"), lambda *_: None)
        for name, value in stand_ins.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(svi, "_on_gpu", lambda args: True))
        stack.enter_context(mock.patch.object(batches, "_CACHE_BYTES", batches._BLOCK_BYTES))
        stack.enter_context(mock.patch.object(specialization.Specialization, "on_device", lambda self, leaves: True))
        yield


def noted(call: Callable) -> Counter:
    with Operations() as operations:
        call()
    return operations.found


def on_fake_cuda(graph, inputs: list[torch.Tensor]) -> Counter:
    """The operations of a traced graph with every tensor on CUDA."""
    for node in graph.module.graph.nodes:
        node.kwargs = tree_map(lambda each: torch.device("cuda") if isinstance(each, torch.device) else each, dict(node.kwargs))
    graph.module.recompile()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        moved = [tensor.detach().to("cuda") for tensor in (*inputs, *graph.constants)]
        return noted(lambda: graph.module(*moved))


def main(hidden: list[int] = [400], latent_dim: int = 20, batch_size: int = 128, out: str = "step_operations"):
    """Write the table of a VAE of 784 binary entries under Adam.

    Args:
        hidden: units of each hidden layer.
        latent_dim: latent dimensions.
        batch_size: rows of a batch.
        out: the table's path, without suffix.
    """
    parts = pa.priors.Normal(latent_dim), pa.likelihoods.Bernoulli(784), pa.posteriors.Normal()
    ae, x = pa.Autoencoder(*parts, pa.nets.MLP(hidden), pa.nets.MLP(hidden)).train(), torch.rand(batch_size, 784).round()
    total = torch.zeros((), dtype=torch.float64)
    with pyro.validation_enabled(False), as_on_cuda():
        adam = torch.optim.Adam(ae.parameters(), fused=True)
        steps = pa.SVI(ae.model, ae.guide, adam, TraceMeanField_ELBO(), compile="traced", sync=False)
        for _ in range(6):  # the first is eager, the second traced; then proofs and recordings take turns
            steps.step(x)
        (traced,) = steps._gradients.specializations
        host = noted(lambda: total.add_(steps.step(x)))
        gradients = steps._graph_sums(x)
        with steps._recorder._capturable():
            update = noted(lambda: steps._optimize(gradients.info, *gradients))
        inputs = [*traced.reach.tensors(), x]
        epoch = batches.Batches(x.repeat(batches._BLOCK, 1), batch_size, torch.device("cpu"), shuffle=True)
        found = {
            f"by the host, once in {batches._BLOCK} steps: batches in a new order": noted(lambda: list(epoch)),
            "by the host, in every step, with one launch of the graph": host,
            "by the host, twice a second: a look at the loss": noted(total.item),
            "in the graph: loss and gradients": on_fake_cuda(traced.graph, [inputs[i] for i in traced.input_indices]),
            "in the graph: Adam": update,
        }
    rows = [[place, name, str(n), where, waits] for place, counts in found.items() for (name, where, waits), n in counts.items()]
    kernels = {place: sum(n for (_, where, _), n in counts.items() if where.startswith("kernel")) for place, counts in found.items()}
    shape = "-".join(map(str, [784, *hidden, latent_dim]))
    settings = {"model": shape, "batch": batch_size, "torch": torch.__version__, "CUDA": "not run on CUDA; traced on a CPU"}
    head = ["part of the step", "operation", "times", "where it runs", "does the host wait?"]
    sums = markdown(["part of the step", "kernels"], [[place, str(n)] for place, n in kernels.items()])
    write(out, settings, {"rows": rows, "kernels": kernels}, [markdown(head, rows), sums])


if __name__ == "__main__":
    import jsonargparse

    jsonargparse.CLI(main, as_positional=False)

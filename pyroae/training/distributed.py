"""Distributed jobs: ranks, sums and broadcasts over processes on one or several machines."""

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")
_TIMEOUT = timedelta(minutes=30)  # for a process that does not answer, for example because it draws figures
_active = False  # whether this process is part of a distributed job


@contextlib.contextmanager
def distributed() -> Iterator[None]:
    """Run a job in the processes that ``torchrun`` started; a single process is not affected.

    ``fit`` shards every batch: process r of W takes its rows r, r + W, ..., so ``batch_size`` is the global one and training
    does not depend on W. Losses are sums over examples, so gradients are summed over processes
    (``torch.distributed.all_reduce``, one call per step, between the graph of loss and gradients and the optimizer;
    a graph has no backward pass for the hooks of ``DistributedDataParallel``). Every process has its own noise; the main
    process broadcasts weights, row orders and decisions, and only it writes files. ``log_likelihood`` and ``elbo_terms``
    shard the data, and every process gets all values; with a seed they are equal to those of a single process. All
    processes must call them. If a loss is not a sum over examples (batch norm, penalties on a batch such as MMD), each
    process uses its own part of the batch, as with DDP. In a training loop without ``fit``,
    ``DistributedDataParallel(elbo(model, guide))`` works as for any module, without ``pa.distributed``.

    Several machines, under Slurm, with a run folder that all can read and the first process can write:

    .. code-block:: sh

        #SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=4
        srun torchrun --nnodes $SLURM_NNODES --nproc-per-node 4 --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID \\
            --rdzv-endpoint $(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1):29500 \\
            -m pyroae train --data mnist --out runs/large

    If a process dies the job ends: the others detect it immediately with gloo, on CUDA at the next synchronization (every 50
    steps), write a checkpoint and raise ``ConnectionError``. A process that does not answer ends the job after half an
    hour. ``pyroae train --resume RUN`` continues from the last checkpoint, with any number of processes.

    Each process uses the GPU ``LOCAL_RANK``, or the only visible one (Slurm's ``--gpus-per-task=1``). Kubernetes needs only
    the variables that its PyTorchJob sets: ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``. (Several GPUs: not
    run on CUDA yet.)

    Raises:
        ConnectionError: another process has died, or cannot be reached.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits", binarize="threshold")
    >>> with distributed():  # torchrun --nproc-per-node 2 this_program.py runs it in two processes
    ...     history = pa.fit(pa.recipes.vae(digits), digits.train, epochs=2, progress=False)
    ...     world_size()
    1
    """
    global _active
    if _active or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_local_gpu())
    owns_group = not dist.is_initialized()
    if owns_group:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    _active = True
    try:
        yield
    except ConnectionError:
        owns_group = False  # destroying a group may wait for its dead processes
        raise
    finally:
        _active = False
        if owns_group:
            with contextlib.suppress(RuntimeError):  # of processes that have ended
                dist.destroy_process_group()


def _local_gpu() -> int:
    """Index of this process's GPU; a scheduler such as Slurm may make only that one visible."""
    local, visible = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if 1 < visible <= local:
        raise ValueError(f"distributed: expected a GPU for each process of a machine, got LOCAL_RANK={local} and {visible} GPUs")
    return local if visible > 1 else 0


def world_size() -> int:
    """Number of processes of the job."""
    return dist.get_world_size() if _active else 1


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if _active else 0


def is_main() -> bool:
    """Whether this is rank 0, which writes files."""
    return rank() == 0


def all_reduce(*tensors: Tensor | None) -> list[Tensor | None]:
    """Sums over processes, in one call for tensors of one dtype; ``None`` must be ``None`` in every process."""
    if world_size() == 1:
        return list(tensors)
    present = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.reshape(-1).to(present[-1].dtype) for tensor in present])
    _call(dist.all_reduce, flat)
    parts = iter(zip(present, flat.split([tensor.numel() for tensor in present])))
    return [None if tensor is None else _shaped(*next(parts)) for tensor in tensors]


def all_reduce_int(value: int) -> int:
    """The sum of an int over processes."""
    return value if world_size() == 1 else int(all_reduce(torch.tensor(value))[0])


def barrier():
    """Wait on the CPU for all processes; fails if one has died, where waiting on a GPU would never end.

    Raises:
        ConnectionError: another process has died, or has not answered within half an hour.
    """
    if world_size() > 1:
        all_reduce(torch.zeros(()))


def main_decides(decision: bool) -> bool:
    """The main process's decision, in all processes."""
    return decision if world_size() == 1 else bool(all_reduce(torch.tensor(float(decision and is_main())))[0])


def _shaped(like: Tensor, flat: Tensor) -> Tensor:
    return flat.view(like.shape).to(like.dtype)


@torch.no_grad()
def broadcast(*tensors: Tensor):
    """Copy the main process's values into the tensors of all processes."""
    if world_size() > 1:
        for tensor in tensors:
            values = tensor.detach().contiguous()
            _call(dist.broadcast, values, 0)
            tensor.copy_(values)


def run_on_main(function: Callable[[], T]) -> T:
    """Call a function in the main process; all processes return its result or raise its ``ValueError`` or ``OSError``."""
    if world_size() == 1:
        return function()
    result: list[Any] = [None, None]
    if is_main():
        try:
            result[0] = function()
        except (ValueError, OSError) as error:
            result[1] = error
    _call(dist.broadcast_object_list, result, 0)
    if result[1] is not None:
        raise result[1]
    return result[0]


def first_result(result: T | None) -> T | None:
    """The result of the lowest rank with a result other than ``None``."""
    if world_size() == 1:
        return result
    results: list[Any] = [None] * world_size()
    _call(dist.all_gather_object, results, result)
    return next((result for result in results if result is not None), None)


def seed_ranks():
    """Seed all processes but the main one differently, based on the main process's random state."""
    state = torch.get_rng_state()
    broadcast(state)
    if rank():
        torch.manual_seed(zlib.crc32(state.numpy().tobytes()) + rank())


def _call(collective: Callable, *args):
    try:
        collective(*args)
    except RuntimeError as error:
        raise ConnectionError(
            f"another process of this job has died or cannot be reached (this is process {rank()} of {world_size()}); the last checkpoint "
            f"is kept: continue with pyroae train --resume RUN ({str(error).strip().partition(chr(10))[0][:160]})"
        ) from error

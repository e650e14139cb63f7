"""One job of several processes, on one machine or many: ranks, sums and broadcasts."""

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
_PATIENCE = timedelta(minutes=30)  # for a process that does not answer, such as the one that writes pictures
_job = False  # whether this process is part of a distributed job


@contextlib.contextmanager
def distributed() -> Iterator[None]:
    """Inside, the processes that ``torchrun`` started do one job; a single process is not affected.

    ``fit`` shares out every batch: process r of W takes the rows r, r + W, ... of it, so that ``batch_size`` is that of
    the whole and training is the same whatever W. Losses are sums over data, so gradients are summed over the
    processes (``torch.distributed.all_reduce``, one call a step, between the graph of loss and gradients and the
    optimizer: there is no backward pass on which ``DistributedDataParallel`` could hang its hooks). Every process draws
    noise of its own; the main process broadcasts weights, orders of data and decisions, and it alone writes files.
    ``log_likelihood`` and ``elbo_terms`` share out the data, and every process gets all values; with a seed each example's are
    those that one process alone would give it. Everybody must call them. Where a loss is more than a sum over data
    (batch norm, penalties on a batch such as MMD), each process sees its own part of the batch, as under DDP. For a loop of
    your own ``DistributedDataParallel(elbo(model, guide))`` works as for any module, and needs no ``pa.distributed``.

    Several machines, under Slurm, with a run folder that all can read and the first process can write:

    .. code-block:: sh

        #SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=4
        srun torchrun --nnodes $SLURM_NNODES --nproc-per-node 4 --rdzv-backend c10d --rdzv-id $SLURM_JOB_ID \\
            --rdzv-endpoint $(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1):29500 \\
            -m pyroae train --data mnist --out runs/large

    A process that dies ends the job: the others notice it at once over gloo, on CUDA at the next meeting (every 50 steps), write a
    checkpoint and raise ``ConnectionError``. One that no longer answers ends it after half an hour. ``pyroae train --resume RUN``
    goes on from the last checkpoint, with as many processes as you like.

    Each process takes the GPU ``LOCAL_RANK`` among those it sees, the only one where it sees one (as under Slurm's
    ``--gpus-per-task=1``). Kubernetes needs nothing else than what its PyTorchJob sets: ``RANK``, ``WORLD_SIZE``,
    ``MASTER_ADDR`` and ``MASTER_PORT``. (Several GPUs: not run on CUDA yet.)

    Raises:
        ConnectionError: another process has died, or cannot be reached.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits", binarize="threshold")
    >>> with distributed():  # by torchrun --nproc-per-node 2 this_program.py two processes do it
    ...     history = pa.fit(pa.recipes.vae(digits), digits.train, epochs=2, progress=False)
    ...     world_size()
    1
    """
    global _job
    alone = _job or int(os.environ.get("WORLD_SIZE", 1)) == 1
    if alone:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_own_gpu())
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    _job = True
    try:
        yield
    except ConnectionError:
        ours = False  # to close a group some of whose members are gone may wait for them
        raise
    finally:
        _job = False
        if ours:
            with contextlib.suppress(RuntimeError):  # of processes that have ended already
                dist.destroy_process_group()


def _own_gpu() -> int:
    """This process's among those it can see; a scheduler such as Slurm may show each process its own alone."""
    local, shown = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if 1 < shown <= local:
        raise ValueError(f"distributed: expected a GPU for each process of a machine, got LOCAL_RANK={local} and {shown} GPUs")
    return local if shown > 1 else 0


def world_size() -> int:
    """The number of processes of the job."""
    return dist.get_world_size() if _job else 1


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if _job else 0


def is_main() -> bool:
    """Whether this is rank 0, which writes files."""
    return rank() == 0


def all_reduce(*tensors: Tensor | None) -> list[Tensor | None]:
    """Sums over the processes, by one call for tensors of one dtype; ``None`` must be ``None`` in every process."""
    if world_size() == 1:
        return list(tensors)
    given = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.reshape(-1).to(given[-1].dtype) for tensor in given])
    _calling(dist.all_reduce, flat)
    parts = iter(zip(given, flat.split([tensor.numel() for tensor in given])))
    return [None if tensor is None else _shaped(*next(parts)) for tensor in tensors]


def all_reduce_int(rows: int) -> int:
    """The sum of an int over the processes."""
    return rows if world_size() == 1 else int(all_reduce(torch.tensor(rows))[0])


def barrier():
    """Wait on the CPU until all processes are here. If another one has died this fails, where a wait for a GPU would not end.

    Raises:
        ConnectionError: another process has died, or has not come within half an hour.
    """
    if world_size() > 1:
        all_reduce(torch.zeros(()))


def main_decides(decision: bool) -> bool:
    """The main process's decision, in every process."""
    return decision if world_size() == 1 else bool(all_reduce(torch.tensor(float(decision and is_main())))[0])


def _shaped(like: Tensor, flat: Tensor) -> Tensor:
    return flat.view(like.shape).to(like.dtype)


@torch.no_grad()
def broadcast(*tensors: Tensor):
    """Copy the main process's values into the tensors of every process."""
    if world_size() > 1:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            _calling(dist.broadcast, whole, 0)
            tensor.copy_(whole)


def run_on_main(function: Callable[[], T]) -> T:
    """Call the function in the main process; its result, or its ``ValueError`` or ``OSError``, is that of every process."""
    if world_size() == 1:
        return function()
    result: list[Any] = [None, None]
    if is_main():
        try:
            result[0] = function()
        except (ValueError, OSError) as error:
            result[1] = error
    _calling(dist.broadcast_object_list, result, 0)
    if result[1] is not None:
        raise result[1]
    return result[0]


def first_result(result: T | None) -> T | None:
    """The result of the lowest rank whose result is not ``None``."""
    if world_size() == 1:
        return result
    results: list[Any] = [None] * world_size()
    _calling(dist.all_gather_object, results, result)
    return next((result for result in results if result is not None), None)


def seed_ranks():
    """Seed every process but the main one differently, by the main process's random state."""
    state = torch.get_rng_state()
    broadcast(state)
    if rank():
        torch.manual_seed(zlib.crc32(state.numpy().tobytes()) + rank())


def _calling(collective: Callable, *args):
    try:
        collective(*args)
    except RuntimeError as error:
        raise ConnectionError(
            f"another process of this job has died or cannot be reached (this is process {rank()} of {world_size()}); what was learned "
            f"until the last checkpoint is kept: pyroae train --resume RUN goes on ({str(error).strip().partition(chr(10))[0][:160]})"
        ) from error

"""One job of several processes, on one machine or many: who is who, what is summed, what is agreed upon."""

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")
_PATIENCE = timedelta(minutes=30)  # for a process that does not answer, such as the one that writes pictures
_job = False  # whether processes work together now


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, the processes that ``torchrun`` started do one job together; a process alone goes on as ever.

    ``fit`` shares out every batch: process r of W takes the rows r, r + W, ... of it, so that ``batch_size`` is that of
    the whole and training is the same whatever W. Losses are sums over data, so gradients are summed over the
    processes (``torch.distributed.all_reduce``, one call a step, between the graph of loss and gradients and the
    optimizer: there is no backward pass on which ``DistributedDataParallel`` could hang its hooks). Every process draws
    noise of its own; the first one's weights, orders of data and decisions hold for all, and it alone writes.
    ``log_likelihood`` and ``elbo_terms`` share out the data, and every process gets all values; with a seed each example's are
    those that one process alone would give it. Everybody must call them. Where a loss is more than a sum over data
    (batch norm, penalties on a batch such as MMD), each process sees its own part of the batch, as under DDP. For a loop of
    your own ``DistributedDataParallel(elbo(model, guide))`` works as for any module, and needs no ``together``.

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
    >>> with together():  # by torchrun --nproc-per-node 2 this_program.py two processes do it
    ...     history = pa.fit(pa.recipes.vae(digits), digits.train, epochs=2, progress=False)
    ...     processes()
    1
    """
    global _job
    alone = _job or int(os.environ.get("WORLD_SIZE", 1)) == 1
    if alone:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_own_gpu())
    ours = not distributed.is_initialized()
    if ours:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
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
                distributed.destroy_process_group()


def _own_gpu() -> int:
    """This process's among those it can see; a scheduler such as Slurm may show each process its own alone."""
    local, shown = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if 1 < shown <= local:
        raise ValueError(f"together: expected a GPU for each process of a machine, got LOCAL_RANK={local} and {shown} GPUs")
    return local if shown > 1 else 0


def processes() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if _job else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if _job else 0


def leads() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


def total(*tensors: Tensor | None) -> list[Tensor | None]:
    """Sums over the processes, by one call for tensors of one type; what is ``None`` must be so everywhere."""
    if processes() == 1:
        return list(tensors)
    given = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.reshape(-1).to(given[-1].dtype) for tensor in given])
    _calling(distributed.all_reduce, flat)
    parts = iter(zip(given, flat.split([tensor.numel() for tensor in given])))
    return [None if tensor is None else _shaped(*next(parts)) for tensor in tensors]


def count(rows: int) -> int:
    """The sum of a number of each process."""
    return rows if processes() == 1 else int(total(torch.tensor(rows))[0])


def meet():
    """Wait on the CPU until all processes are here. Where another one has died this fails, but a wait for a GPU would not end.

    Raises:
        ConnectionError: another process has died, or has not come within half an hour.
    """
    if processes() > 1:
        total(torch.zeros(()))


def decided(wish: bool) -> bool:
    """Whether the first process wishes it; the others' wishes do not count."""
    return wish if processes() == 1 else bool(total(torch.tensor(float(wish and leads())))[0])


def _shaped(like: Tensor, flat: Tensor) -> Tensor:
    return flat.view(like.shape).to(like.dtype)


@torch.no_grad()
def agree(*tensors: Tensor):
    """Everywhere the first process's values."""
    if processes() > 1:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            _calling(distributed.broadcast, whole, 0)
            tensor.copy_(whole)


def first(find: Callable[[], T]) -> T:
    """What the first process finds, everywhere; what it raises as a ``ValueError`` or ``OSError``, everywhere too."""
    if processes() == 1:
        return find()
    found: list[Any] = [None, None]
    if leads():
        try:
            found[0] = find()
        except (ValueError, OSError) as error:
            found[1] = error
    _calling(distributed.broadcast_object_list, found, 0)
    if found[1] is not None:
        raise found[1]
    return found[0]


def of_any(found: T | None) -> T | None:
    """What the first process found that found something."""
    if processes() == 1:
        return found
    all_found: list[Any] = [None] * processes()
    _calling(distributed.all_gather_object, all_found, found)
    return next((each for each in all_found if each is not None), None)


def draw_apart():
    """Give every process but the first random numbers of its own, which follow from the first one's."""
    state = torch.get_rng_state()
    agree(state)
    if rank():
        torch.manual_seed(zlib.crc32(state.numpy().tobytes()) + rank())


def _calling(collective: Callable, *args):
    try:
        collective(*args)
    except RuntimeError as error:
        raise ConnectionError(
            f"another process of this job has died or cannot be reached (this is process {rank()} of {processes()}); what was learned "
            f"until the last checkpoint is kept: pyroae train --resume RUN goes on ({str(error).strip().partition(chr(10))[0][:160]})"
        ) from error

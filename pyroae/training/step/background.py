"""Compiling a graph in another process, for the folder of compiled graphs, while training goes on with the graph that there is."""

import atexit
import os
import pickle
import subprocess
import sys
import tempfile

import torch
from torch import Tensor

from . import native

_NICENESS = 5  # training comes first
_running: set[subprocess.Popen] = set()


def has_spare_core() -> bool:
    """Whether another process can compile without taking the processor from this one."""
    return _cores() > 1


def is_busy() -> bool:
    """Whether other graphs are compiled on all cores that can be spared."""
    return sum(map(is_running, list(_running))) >= max(1, _cores() - 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(module: torch.fx.GraphModule, inputs: list[Tensor], key: str) -> subprocess.Popen:
    """A process that compiles a graph and keeps the code for ``key``; it ends with this process at the latest.

    Raises:
        ValueError: the graph cannot be given to another process.
    """
    layouts = [(tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in inputs]
    settings = torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision, torch.are_deterministic_algorithms_enabled()
    with tempfile.TemporaryFile() as file:
        pickle.dump((native.packed(module), layouts, key, settings), file)
        file.seek(0)
        process = subprocess.Popen([sys.executable, "-m", __name__], stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _running.add(process)
    return process


def is_running(process: subprocess.Popen) -> bool:
    """Whether the process still compiles."""
    if process.poll() is None:
        return True
    _running.discard(process)
    return False


@atexit.register
def stop():
    """End all processes that compile."""
    while _running:
        process = _running.pop()
        process.terminate()
        process.wait()


def main():
    """The process itself: reads a graph from its parent on standard input."""
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    graph, layouts, key, (threads, precision, deterministic) = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    torch.backends.mkldnn.matmul.fp32_precision = precision
    torch.use_deterministic_algorithms(deterministic)
    inputs = [torch.empty_strided(shape, stride, dtype=dtype).zero_() for shape, stride, dtype in layouts]
    with torch.no_grad():
        native.compiled_package(native.unpacked(graph), inputs, key)


if __name__ == "__main__":
    main()

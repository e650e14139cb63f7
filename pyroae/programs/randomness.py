"""Random numbers of programs: seeding without side effects; saving and restoring random states."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed torch, NumPy and Python inside and restore the caller's random state on exit; no effect for ``None``."""
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(_gpus(device)):
        reseed(seed, device)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def reseed(seed: int, device: torch.device):
    """Seed torch on the CPU and on the GPU of ``device``; other devices are unchanged."""
    torch.default_generator.manual_seed(seed)
    for gpu in _gpus(device):
        with torch.cuda.device(gpu):
            torch.cuda.manual_seed(seed)


def _gpus(device: torch.device) -> list[torch.device]:
    """The GPU of ``device``; for CPU programs the current GPU, if CUDA is in use."""
    if device.type == "cuda":
        return [device]
    return [torch.device("cuda", torch.cuda.current_device())] if torch.cuda.is_initialized() else []


def random_state(device: torch.device) -> dict[str, Any]:
    """Random states of torch (CPU and ``device``), Python and NumPy."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
    }


def set_random_state(state: dict[str, Any], device: torch.device):
    """Restore the states of ``random_state``."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])

"""Random numbers of programs: seeds that leave the caller's generators alone, and states that can be saved and restored."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from ``seed`` inside (torch's, NumPy's and Python's), the caller's own untouched; with ``None`` the caller's go on."""
    if seed is None:
        yield
        return
    others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(_gpus(device)):
        reseed(seed, device)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])


def reseed(seed: int, device: torch.device):
    """Torch's random numbers from ``seed``, on the CPU and where programs on ``device`` draw; other devices go on."""
    torch.default_generator.manual_seed(seed)
    for gpu in _gpus(device):
        with torch.cuda.device(gpu):
            torch.cuda.manual_seed(seed)


def _gpus(device: torch.device) -> list[torch.device]:
    """That GPU; where programs do not say, the one in use if there is one."""
    if device.type == "cuda":
        return [device]
    return [torch.device("cuda", torch.cuda.current_device())] if torch.cuda.is_initialized() else []


def random_state(device: torch.device) -> dict[str, Any]:
    """Where all the random numbers that a program can draw are: torch's, on the device too, Python's and NumPy's."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
    }


def set_random_state(state: dict[str, Any], device: torch.device):
    """Go on drawing where ``random_state`` was."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])

"""Native code of graphs: compiled by AOTInductor and kept in the user's cache folder, or by Inductor for this process alone.

All private interfaces of torch that compiled graphs need stand in this file.
"""

import contextlib
import functools
import hashlib
import logging
import os
import platform
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ...files import atomic

Run = Callable[[list[Tensor]], list]


class NativeError(RuntimeError):
    """An operation has failed in native code, which does not say which one."""


FOLDER = "PYROAE_GRAPHS"  # environment variable: the folder of compiled graphs; "off" keeps none
LIMIT = 1_000_000_000  # bytes of compiled graphs in the folder; those that were used last are kept
_FORMAT = "2"
_LOG = logging.getLogger("pyroae")
_OPTIONS = {"fallback_random": True}  # random numbers are torch's own


def key_of(module: torch.fx.GraphModule, inputs: list[Tensor], *more: str) -> str | None:
    """A digest of everything that native code depends on; ``None`` if it cannot be kept: on a GPU, or if keeping is turned off.

    Args:
        module: the graph; the tensors that it holds are part of the digest.
        inputs: examples of its inputs, of which only the layout counts.
        more: what else the code depends on.
    """
    if folder() is None or not all(tensor.is_cpu for tensor in inputs):
        return None
    parts = [
        *(_FORMAT, torch.__version__, platform.machine(), _processor(), str(torch.get_num_threads()), *more),
        *(torch.backends.mkldnn.matmul.fp32_precision, str(torch.backends.mkldnn.enabled)),  # torch's older name raises where both are used
        str(torch.are_deterministic_algorithms_enabled()),
        *(str(each.graph) for each in module.modules() if isinstance(each, torch.fx.GraphModule)),
        *(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}" for tensor in inputs),
    ]
    digest = hashlib.sha256("\0".join(parts).encode())
    for name, held in sorted(_literals(module).items()):
        digest.update(f"{name} {held.dtype} {tuple(held.shape)} {held.tolist()}".encode())
    return digest.hexdigest()[:32]


@functools.cache
def sources(*names: str) -> str:
    """A digest of files of this folder, by name, on which native code depends."""
    files = (Path(__file__).with_name(f"{name}.py").read_bytes() for name in names)
    return hashlib.sha256(b"".join(files)).hexdigest()


def is_kept(key: str | None) -> bool:
    """Whether there is native code for a key."""
    return key is not None and _path(key) is not None


def was_seen(calls: str) -> bool:
    """Whether native code of such calls was used before, so that it is probably kept."""
    return bool(calls and (home := folder()) and (home / _seen(calls)).exists())


def note_seen(calls: str):
    """Note that native code of such calls is used."""
    home = folder()
    with contextlib.suppress(OSError):
        if calls and home and home.is_dir():
            (home / _seen(calls)).touch()


def _seen(calls: str) -> str:
    return _digest(f"{torch.__version__} {calls}".encode()) + ".seen"


def load(key: str | None) -> Run | None:
    """The native code that was kept for a key, if there is any and it is intact."""
    path = _path(key) if key else None
    if path is None:
        return None
    try:
        if _digest(_read(path)) != path.stem.partition("-")[2]:
            raise ValueError("its content has changed")
        os.utime(path)
        return _package(path)
    except Exception as error:  # noqa: BLE001  whatever torch says of such a file
        _LOG.warning("compile: the compiled graph %s is deleted and made again: %s", path, error)
        path.unlink(missing_ok=True)
        return None


def compiled(module: torch.fx.GraphModule, inputs: list[Tensor], key: str | None) -> Run:
    """Compile a graph: on a CPU with AOTInductor, to be kept if there is a key; where that fails, or on a GPU, with Inductor."""
    with torch.no_grad():
        examples = [tensor.detach() for tensor in inputs]
        if all(tensor.is_cpu for tensor in inputs):
            try:
                return compiled_package(module, examples, key)
            except Exception as error:  # noqa: BLE001  a private interface, and a compiler: Inductor's public one is left
                _LOG.info("compile: no package can be made (%s: %s); compiling for this process alone", type(error).__name__, error)
        from torch._inductor import compile

        with _quiet():
            run = compile(module, examples, options=_OPTIONS)
        return lambda inputs: run(*inputs)


def folder() -> Path | None:
    """The folder of compiled graphs, ``~/.cache/pyroae/graphs`` or ``PYROAE_GRAPHS``; ``None`` if that is ``off``."""
    named = os.environ.get(FOLDER)
    if named:
        return None if named == "off" else Path(named)
    with contextlib.suppress(RuntimeError):  # no home
        return Path.home() / ".cache" / "pyroae" / "graphs"
    return None


def compiled_package(module: torch.fx.GraphModule, examples: list[Tensor], key: str | None) -> Run:
    """A graph compiled by AOTInductor, kept if there is a key."""
    from torch._inductor import aot_compile
    from torch._inductor.package import package_aoti

    with _quiet():
        files = aot_compile(module, tuple(examples), options={**_OPTIONS, "aot_inductor.package": True})
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(package_aoti(os.path.join(temporary, "graph.pt2"), files))
        return _package(key and _keep(key, made.read_bytes()) or made)


def _package(path: Path) -> Run:
    """The code in a package, which is loaded into this process."""
    run = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1).run

    def checked(inputs: list[Tensor]) -> list:
        try:
            return run(inputs)
        except RuntimeError as error:
            raise NativeError from error

    return checked


# --- the folder ---


def _keep(key: str, content: bytes) -> Path | None:
    """Write code to the folder, and delete what was not used for longest; ``None`` where the folder cannot be used."""
    home = folder()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_own(home, os.lstat(home), stat.S_ISDIR)
        path = home / f"{key}-{_digest(content)}.pt2"
        with atomic(path) as temporary:
            temporary.write_bytes(content)
        _shrink(home)
        return path
    except (OSError, ValueError) as error:
        _LOG.warning("compile: compiled graphs are not kept: %s", error)
        return None


def _path(key: str) -> Path | None:
    home = folder()
    try:
        _check_own(home, os.lstat(home), stat.S_ISDIR)
        return next(iter(sorted(home.glob(f"{key}-*.pt2"))), None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _LOG.warning("compile: compiled graphs are not used: %s", error)
        return None


def _read(path: Path) -> bytes:
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        _check_own(path, os.fstat(file.fileno()), stat.S_ISREG)
        return file.read()


def _check_own(path: Path, status: os.stat_result, is_kind: Callable[[int], bool]):
    """``ValueError`` unless only this user can have written a file or folder, which holds native code."""
    if not is_kind(status.st_mode):
        raise ValueError(f"expected {path} as a plain file or folder, not a link")
    if os.name == "posix" and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise ValueError(
            f"expected {path} to belong to this user and to be writable by nobody else, as it holds native code; "
            f"correct that, or set {FOLDER} to another folder or to off"
        )


def _shrink(home: Path):
    """Delete the files that were not used for longest until the others fit into the limit."""
    for pattern, least in (("*.pt2", 0), ("*.seen", LIMIT // 1000)):
        files = sorted(((path.stat().st_mtime, path.stat().st_size, path) for path in home.glob(pattern)), reverse=True)
        total = 0
        for _, size, path in files:
            total += max(size, least)
            if total > LIMIT:
                path.unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


# --- torch ---


def packed(module: torch.fx.GraphModule) -> bytes:
    """A graph for another process; ``ValueError`` for one with literals, whose values torch leaves out."""
    from torch.fx._graph_pickler import GraphPickler

    if _literals(module):
        raise ValueError("the graph has literals")
    return GraphPickler.dumps(module)


def unpacked(content: bytes) -> torch.fx.GraphModule:
    """The graph of ``packed``."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx._graph_pickler import GraphPickler

    return GraphPickler.loads(content, FakeTensorMode())


def _literals(module: torch.fx.GraphModule) -> dict[str, Tensor]:
    """Tensors that a graph holds itself."""
    return {name: held for name, held in {**vars(module), **dict(module.named_buffers())}.items() if isinstance(held, Tensor)}


def _processor() -> str:
    """The processor's model and instructions, for which code is compiled."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))))
    return f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without notes of the compiler, about operations that it does not know itself, a GPU that is not there, or its own old names."""
    loggers = [logging.getLogger(name) for name in ("torch._inductor", "torch.utils.cpp_extension")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)

"""An audit hook: while it is armed, nothing may be imported or executed but installed packages and pyroae, or leave a folder."""

import contextlib
import functools
import os
import site
import sys
import sysconfig
from pathlib import Path

import pyroae

_HOMES = [*site.getsitepackages(), *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")), str(Path(pyroae.__file__).parent)]
_NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pickle.find_class", "socket.connect")
_WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree")
_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_armed: dict = {}


def _outside(path) -> bool:
    return isinstance(path, (str, bytes, os.PathLike)) and not Path(os.fsdecode(path)).resolve().is_relative_to(_armed["folder"])


def _hook(event: str, args: tuple):
    if not _armed:
        return
    wrong = event in _NEVER
    if event == "import":
        wrong = args[0].partition(".")[0] not in _armed["packages"]
    elif event == "exec":
        name = args[0].co_filename
        wrong = not any(name.startswith(home) for home in _HOMES) and not name.startswith(("<frozen", "<attrs", "<__array_function__"))
    elif event == "open":
        wrong = isinstance(args[2], int) and bool(args[2] & _FLAGS) and args[0] != os.devnull and _outside(args[0])
    elif event in _WRITES:
        wrong = any(_outside(path) for path in args if isinstance(path, (str, bytes, os.PathLike)))
    if wrong:
        _armed["found"].append((event, str(args)[:200]))
        raise RuntimeError(f"audit: {event} {args}")


@functools.cache
def _add():
    """Once: a hook cannot be taken away."""
    sys.addaudithook(_hook)


@contextlib.contextmanager
def armed(folder):
    """Fail on any import or execution from elsewhere, any process, and any write outside the folder."""
    _add()
    packages = {name.partition(".")[0] for name in sys.modules} | set(sys.stdlib_module_names)
    _armed.update(folder=Path(folder).resolve(), packages=packages, found=[])
    found = _armed["found"]
    try:
        yield
    finally:
        _armed.clear()
    assert found == []

"""What a program can read beside its arguments, found by walking its objects and code: the inputs and the guards of its graph."""

import enum
import functools
import inspect
import types
from collections.abc import Iterable, Iterator
from operator import getitem, is_
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy

from .arguments import NUMBERS, PLAIN, children
from .holders import Cell, ClassView, Contents
from .user_code import DYNAMIC_NAMES, functions_of, is_user_class, is_user_code, is_user_module, names_in
from .watching import SETTLED, is_closed, is_library_hook, is_opened, may_change_unseen, process_state, same

_LONG = 5000  # entries of a container that are watched
_SMALL = 8192  # bytes of an array whose contents are watched
_COMPUTED, _ENVIRONMENT = {"globals", "eval", "exec", "locals"}, {"environ", "getenv"}  # what looks up what is not followed
_MODULE = frozenset(vars(nn.Module())) - {"training"}  # what every module has; its contents are looked at one by one
_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_CACHES = "_cached", "_intermediates_cache", "_inv", "_pyro_context", "arguments"  # of libraries: rewritten whenever they are used
_NOT_CALLED = frozenset({"__init__", "__new__", "__repr__", "__str__", "__del__", "__init_subclass__", "__class_getitem__"})
_MAKING = frozenset({"__init__", "__new__"})
_STORE = "the parameter store"
_GLOBAL_HOOKS = [getattr(hooks, f"_global{name}") for name in _HOOKS]


class Reach:
    """The tensors, numbers and settings that programs can read, as slots ``holder[key]``.

    Followed are modules and their hooks, bound methods, closures, partial functions, the globals and attributes that the
    person's own code names, containers, the ELBO and handlers, and the parameter store's entries ``names``. Attributes
    that no reached code names, such as a trainer's list of losses, are not. Where an object is reached that cannot be watched,
    such as an iterator or a random number generator of the person's own, ``refused`` says so.

    ``tensors`` are looked up at every call, so they may be replaced. ``numbers`` are those whose path is in ``dynamic``;
    they too are inputs. Everything else is fixed in a graph; ``intact`` says whether it is still as it was. Those ``ignored``
    are caches of libraries, which change whenever they are used.
    """

    def __init__(
        self,
        roots: Iterable[Any],
        names: Iterable[str] = (),
        dynamic: frozenset[str] = frozenset(),
        ignored: frozenset[str] = frozenset(),
    ):
        self.dynamic, self.ignored = dynamic, ignored
        self.fixed, self.values, self.fixed_paths = ([], []), [], []  # (holders, keys)
        self.tensor_slots, self.tensor_paths = ([], []), []
        self.number_slots, self.number_paths = ([], []), []
        self.own: set[str] = set()  # paths of what a person's own code holds, not a library
        self.sized: list[Any] = [pyro.poutine.runtime._PYRO_STACK, *_GLOBAL_HOOKS]
        self.sized_paths: list[str] = [""] * len(self.sized)  # of a person's own containers
        self.refused: str | None = None  # why no graph is made: a hook that is not torch's own, or what cannot be watched
        self.codes: list[Any] = []
        self._visited: dict[Any, Any] = {}
        self._known: set[str] = set()  # names of attributes in the reached code
        self._waiting: dict[int, tuple[str, Any]] = {}  # objects whose attributes may become relevant as more code is reached
        self._taken: set[tuple[int, Any]] = set()
        for i, root in enumerate(roots):
            self._walk(f"#{i}", root, user=True)
        self._settle()
        self._enter_store(names)
        self.sizes = list(map(len, self.sized))
        self.state = process_state()
        self.signature = self._signature()

    # --- looking ---

    def tensors(self) -> list[Tensor]:
        """The tensors as they are now."""
        return list(map(getitem, *self.tensor_slots))

    def numbers(self) -> list[int | float]:
        """The numbers that are inputs, as they are now."""
        return list(map(getitem, *self.number_slots))

    def intact(self) -> bool:
        """Whether everything that a graph takes for fixed is as it was."""
        try:
            values = list(map(getitem, *self.fixed))
            equal = all(map(is_, values, self.values)) or self._equal(values)
            return equal and list(map(len, self.sized)) == self.sizes and self.state == process_state()
        except (KeyError, IndexError, ValueError):
            return False

    def changed(self) -> list[str]:
        """The paths of what is no longer as it was."""
        found = []
        for holder, key, value, path in zip(*self.fixed, self.values, self.fixed_paths):
            try:
                if not same(holder[key], value):
                    found.append(path)
            except (KeyError, IndexError, ValueError):
                found.append(path)
        return found

    def resized(self) -> list[str]:
        """The paths of a person's own containers that have grown or shrunk."""
        return [path for path, container, size in zip(self.sized_paths, self.sized, self.sizes) if path and len(container) != size]

    def containers(self) -> list[Any]:
        """A person's own lists, dictionaries and sets."""
        return [container for path, container in zip(self.sized_paths, self.sized) if path and len(container) <= _LONG]

    def restore(self):
        """Put fixed values of a person's own objects back to what they were."""
        for holder, key, value, path in zip(*self.fixed, self.values, self.fixed_paths):
            if path in self.own and not same(holder[key], value):
                holder[key] = value

    def rewritten(self) -> set[str]:
        """The paths of what libraries have put in place of what they held: caches."""
        return {path for path in self.changed() if path not in self.own and path != _STORE}

    def _equal(self, values: list[Any]) -> bool:
        if not all(map(same, values, self.values)):
            return False
        self.values = values
        return True

    def _signature(self) -> tuple:
        """What makes two walks the same kind of call, tensors apart."""
        plain = tuple(
            (path, type(value), value if isinstance(value, (*PLAIN, frozenset)) else id(value) if is_closed(value) else None)
            for path, value in zip(self.fixed_paths, self.values)
        )
        return plain, tuple(self.tensor_paths), tuple(self.number_paths), tuple(map(id, self.codes)), self.state

    # --- walking ---

    def _slot(self, path: str, holder: Any, key: Any, value: Any, user: bool):
        """Enter one place where a value stands, and walk on into it."""
        if (id(holder), key) in self._taken or path in self.ignored:
            return
        self._taken.add((id(holder), key))
        if user:
            self.own.add(path)
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or is_lazy(value):
                self.refuse(f"it reads {path}, a tensor without entries side by side")
                return
            kind, paths = self.tensor_slots, self.tensor_paths
        elif path in self.dynamic and type(value) in NUMBERS:
            kind, paths = self.number_slots, self.number_paths
        else:
            kind, paths = self.fixed, self.fixed_paths
            self.values.append(value)
        kind[0].append(holder), kind[1].append(key), paths.append(path)
        if user and isinstance(value, Tensor):
            for name, part in vars(value).items():
                if isinstance(part, PLAIN):
                    self._slot(f"{path}.{name}", vars(value), name, part, user)
        self._walk(path, value, user)

    def _size(self, container: Any, path: str = ""):
        self.sized.append(container)
        self.sized_paths.append(path)

    def _walk(self, path: str, value: Any, user: bool):
        if value is None or isinstance(value, (*PLAIN, Tensor)) or id(value) in self._visited:
            return
        self._visited[id(value)] = value
        if isinstance(value, (list, dict, tuple)):
            self._container(path, value, user)
        elif isinstance(value, types.MethodType):
            self._walk(path, value.__self__, user)
            self._walk(path, value.__func__, user)
        elif isinstance(value, types.FunctionType):
            self._function(path, value)
        elif isinstance(value, functools.partial):
            for name, part in (("func", value.func), ("args", value.args), ("keywords", value.keywords)):
                self._walk(f"{path}.{name}", part, user)
        elif isinstance(value, type):
            if is_user_class(value):
                self._wait(path, value)
                self._methods(path, value, made=True)
                self._walk(path, type(value), user)  # its metaclass
        elif isinstance(value, types.ModuleType):
            if is_user_module(value.__name__):
                self._wait(path, value)
        elif isinstance(value, nn.Module):
            self._module(path, value)
        elif is_opened(value):
            self._wait(path, value)
            self._methods(path, type(value))
        elif isinstance(value, enum.Enum) and is_user_class(type(value)):
            self._wait(path, value)
            self._methods(path, type(value))
        elif isinstance(value, types.BuiltinMethodType) and not isinstance(value.__self__, types.ModuleType):
            self._walk(path, value.__self__, user)
        elif isinstance(value, (set, bytearray)) or (isinstance(value, np.ndarray) and not value.dtype.hasobject):
            self._contents(path, value, user)
        elif user and not isinstance(value, SETTLED) and (isinstance(value, torch.Generator) or may_change_unseen(type(value))):
            self.refuse(f"it reads {path}, a {type(value).__name__}, in which changes cannot be seen")

    def _contents(self, path: str, value: Any, user: bool):
        small = value.nbytes <= _SMALL if isinstance(value, np.ndarray) else len(value) <= _LONG
        if small:
            holder = self._visited.setdefault(("contents", id(value)), Contents(value))
            self._slot(f"{path} (contents)", holder, 0, holder[0], user)
        elif user:
            self.refuse(f"it reads {path}, a {type(value).__name__} too long to be watched")

    def refuse(self, why: str):
        """Remember the first reason why no graph can be made."""
        self.refused = self.refused or why

    def _container(self, path: str, value: Any, user: bool):
        if not isinstance(value, tuple):
            self._size(value, path if user else "")
        if is_user_class(type(value)):
            self._wait(path, value)
            self._methods(path, type(value))
        if len(value) > _LONG and user:
            self.refuse(f"it reads {path}, a {type(value).__name__} too long to be watched")
        elif len(value) <= _LONG:
            for key, part in children(value):
                self._slot(f"{path}[{key!r}]", value, key, part, user)

    def _module(self, path: str, module: nn.Module):
        for name in _HOOKS:
            self._size(getattr(module, name))
        for hook in (hook for name in _HOOKS for hook in getattr(module, name).values()):
            if not is_library_hook(hook):
                self.refuse(f"a hook on {path} ({type(module).__name__}) runs at every call")
        for store in (module._parameters, module._buffers, module._modules):
            self._size(store)
            for name, part in store.items():
                self._slot(f"{path}.{name}", store, name, part, is_user_class(type(module)))
        self._wait(path, module)
        self._methods(path, type(module))

    def _function(self, path: str, function: types.FunctionType):
        name = f"{path}.{function.__name__}"
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            holder = Cell(cell)
            self._visited[id(holder)] = holder
            if holder.filled:
                self._slot(f"{name}.{variable}", holder, 0, holder[0], is_user_code(function.__code__))
        for default in (function.__defaults__, function.__kwdefaults__):
            self._walk(f"{name}.defaults", default, True)
        if (wrapped := getattr(function, "__wrapped__", None)) is not None:
            self._walk(name, wrapped, True)
        if is_user_code(function.__code__):
            self.codes.append(function.__code__)
            variables, attributes = names_in(function.__code__)
            self._known |= attributes
            if computed := (variables - function.__globals__.keys()) & _COMPUTED or (variables | attributes) & _ENVIRONMENT:
                self.refuse(f"{name} uses {min(computed)}, in which changes cannot be seen")
            self._size(vars(function))
            for key, value in vars(function).items():
                self._slot(f"{name}.{key}", vars(function), key, value, True)
            for variable in variables & function.__globals__.keys():
                self._global(f"{function.__module__}.{variable}", function.__globals__, variable)

    def _methods(self, path: str, cls: type, made: bool = False):
        """Methods of a person's own classes that nobody calls by name: special ones, and those that a library's class calls.

        ``made``: the program may make objects of the class.
        """
        libraries = [base for base in cls.__mro__ if not is_user_class(base) and base is not object]
        for owner in cls.__mro__:
            if is_user_class(owner):
                self._wait(owner.__name__, owner)
                for name, method in vars(owner).items():
                    called = name.startswith(("__", "_pyro_")) or any(hasattr(base, name) for base in libraries)
                    called = called and (name not in _NOT_CALLED or (made and name in _MAKING))
                    for function in functions_of(method) if called else ():
                        self._walk(owner.__name__, function, True)

    def _wait(self, path: str, owner: Any):
        self._waiting.setdefault(id(owner), (path, owner))

    def _settle(self):
        """Follow names from the reached code into objects, classes, modules and globals, until no more is reached."""
        while True:
            before = len(self._known), len(self._waiting), len(self._taken), len(self._visited)
            for path, owner in list(self._waiting.values()):
                self._attributes(path, owner)
            if before == (len(self._known), len(self._waiting), len(self._taken), len(self._visited)):
                return

    def _attributes(self, path: str, owner: Any):
        if isinstance(owner, types.ModuleType):
            for name in self._known & vars(owner).keys():
                self._global(f"{owner.__name__}.{name}", vars(owner), name)
        elif isinstance(owner, type):
            self._class(owner)
        else:
            user, held = is_user_class(type(owner)), getattr(owner, "__dict__", {})
            if user and (id(owner), "") not in self._taken:  # attributes may appear
                self._taken.add((id(owner), ""))
                self._size(held)
            for name in _relevant(owner, self._known if user else None):
                if name in held and not (not user and name.startswith(_CACHES)):
                    self._slot(f"{path}.{name}", held, name, held[name], user)

    def _global(self, path: str, holder: dict, name: str):
        value = holder[name]
        if isinstance(value, types.ModuleType) or (isinstance(value, type) and not is_user_class(value)):
            self._walk(path, value, True)
        elif isinstance(value, types.FunctionType) and not is_user_code(inspect.unwrap(value).__code__):
            return
        else:
            self._slot(path, holder, name, value, True)

    def _class(self, cls: type):
        for name in [name for name in vars(cls) if name in self._known]:
            value = vars(cls)[name]
            for function in functions_of(value):
                self._walk(cls.__name__, function, True)
            if not functions_of(value) and not isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                holder = self._visited.setdefault(("class", cls), ClassView(cls))  # one for each class
                self._slot(f"{cls.__name__}.{name}", holder, name, value, True)

    def _enter_store(self, names: Iterable[str]):
        store = pyro.get_param_store()
        names = list(names)
        if names:  # clearing and loading replace the dictionary
            self.fixed[0].append(vars(store)), self.fixed[1].append("_params"), self.values.append(store._params)
            self.fixed_paths.append(_STORE)
        for name in names:
            if name in store._params:
                self._slot(f"parameter {name!r}", store._params, name, store._params[name], True)


def _relevant(owner: Any, names: set[str] | None) -> Iterator[str]:
    """The attributes of an object that reached code can read; ``names`` of that code where the class is a person's own."""
    listed = getattr(type(owner), "read_by_programs", None)
    if listed is not None:
        yield from listed
        return
    held = getattr(owner, "__dict__", {})
    computed = names is not None and bool(names & DYNAMIC_NAMES)
    inherited = any(not is_user_class(base) and base not in (object, nn.Module) for base in type(owner).__mro__)
    for name, value in list(held.items()):
        if isinstance(owner, nn.Module) and name in _MODULE:
            continue
        if names is None or name in names or name == "training" or isinstance(value, (Tensor, nn.Module)):
            yield name
        elif computed or inherited and not isinstance(value, (list, dict, set)):
            yield name

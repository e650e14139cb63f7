"""The walk over a program's objects and code that finds what it can read."""

import enum
import functools
import inspect
import types
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy

from .arguments import NUMBERS, PLAIN, children, dict_of
from .guards import IMMUTABLE, is_library_hook, is_opened, may_change_unnoticed
from .holders import Cell, ClassView, Contents, Slots
from .user_code import DYNAMIC_NAMES, functions_of, is_user_class, is_user_code, is_user_module, names_in, slots_of

if TYPE_CHECKING:
    from .reach import Reach

MAX_ENTRIES = 5000  # of a container that is watched
STORE = "the parameter store"
_MAX_BYTES = 8192  # of an array whose contents are watched
_COMPUTED, _ENVIRONMENT = {"globals", "eval", "exec", "locals"}, {"environ", "getenv"}  # access to names that cannot be followed
_MODULE = frozenset(vars(nn.Module())) - {"training"}  # attributes of every module; their contents are walked separately
_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_CACHES = "_cached", "_intermediates_cache", "_inv", "_pyro_context", "arguments"  # attributes that libraries rewrite on use
_NOT_CALLED = frozenset({"__init__", "__new__", "__repr__", "__str__", "__del__", "__init_subclass__", "__class_getitem__"})
_CONSTRUCTORS = frozenset({"__init__", "__new__"})
GLOBAL_HOOKS = [getattr(hooks, f"_global{name}") for name in _HOOKS]


class Walker:
    """Fills a ``Reach`` by walking from its roots.

    Followed are modules and their hooks, bound methods, closures, partial functions, containers, the ELBO, handlers, and the
    globals and attributes that reached user code names. Attributes that no reached code names, such as a trainer's list of
    losses, are not.
    """

    def __init__(self, reach: "Reach"):
        self.reach = reach
        self.names: set[str] = set()  # of attributes in the reached code
        self._visited: dict[Any, Any] = {}
        self._pending: dict[int, tuple[str, Any]] = {}  # objects whose attributes may become relevant as more code is reached
        self._slots: set[tuple[int, Any]] = set()

    def run(self, roots: Iterable[Any], names: Iterable[str]) -> dict[Any, Any]:
        """Walk from the roots and follow names from the reached code until no more is reached; then add the store's ``names``.

        Returns all visited objects.
        """
        for i, root in enumerate(roots):
            self._walk(f"#{i}", root, user=True)
        while True:
            before = len(self.names), len(self._pending), len(self._slots), len(self._visited)
            for path, owner in list(self._pending.values()):
                self._attributes(path, owner)
            if before == (len(self.names), len(self._pending), len(self._slots), len(self._visited)):
                break
        self._add_store(names)
        return self._visited

    def _slot(self, path: str, holder: Any, key: Any, value: Any, user: bool):
        """Add the slot of a value, and walk into the value."""
        reach = self.reach
        if (id(holder), key) in self._slots or path in reach.ignored:
            return
        self._slots.add((id(holder), key))
        if user:
            reach.own.add(path)
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or is_lazy(value):
                reach.refuse(f"it reads {path}, a tensor without entries side by side")
                return
            if not _has_memory(value):
                if user:
                    reach.refuse(f"it reads {path}, a tensor of a transform of torch.func")
                return  # left in a library's cache by such a transform, outside of which it cannot be read
            slots, paths = reach.tensor_slots, reach.tensor_paths
        elif path in reach.dynamic and type(value) in NUMBERS:
            slots, paths = reach.number_slots, reach.number_paths
        else:
            slots, paths = reach.fixed, reach.fixed_paths
            reach.values.append(value)
        slots[0].append(holder), slots[1].append(key), paths.append(path)
        if user and isinstance(value, Tensor):
            for name, part in vars(value).items():
                if isinstance(part, PLAIN):
                    self._slot(f"{path}.{name}", vars(value), name, part, user)
        self._walk(path, value, user)

    def _watch_size(self, container: Any, path: str = ""):
        self.reach.sized.append(container)
        self.reach.sized_paths.append(path)

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
                self._defer(path, value)
                self._methods(path, value, constructed=True)
                self._walk(path, type(value), user)  # its metaclass
        elif isinstance(value, types.ModuleType):
            if is_user_module(value.__name__):
                self._defer(path, value)
        elif isinstance(value, nn.Module):
            self._module(path, value)
        elif is_opened(value):
            self._defer(path, value)
            self._methods(path, type(value))
        elif isinstance(value, enum.Enum) and is_user_class(type(value)):
            self._defer(path, value)
            self._methods(path, type(value))
        elif isinstance(value, types.BuiltinMethodType) and not isinstance(value.__self__, types.ModuleType):
            self._walk(path, value.__self__, user)
        elif isinstance(value, (set, bytearray)) or (isinstance(value, np.ndarray) and not value.dtype.hasobject):
            self._contents(path, value, user)
        elif user and not isinstance(value, IMMUTABLE) and (isinstance(value, torch.Generator) or may_change_unnoticed(type(value))):
            self.reach.refuse(f"it reads {path}, a {type(value).__name__}, in which changes cannot be seen")

    def _contents(self, path: str, value: Any, user: bool):
        small = value.nbytes <= _MAX_BYTES if isinstance(value, np.ndarray) else len(value) <= MAX_ENTRIES
        if small:
            holder = self._visited.setdefault(("contents", id(value)), Contents(value))
            self._slot(f"{path} (contents)", holder, 0, holder[0], user)
        elif user:
            self.reach.refuse(f"it reads {path}, a {type(value).__name__} too long to be watched")

    def _container(self, path: str, value: Any, user: bool):
        if not isinstance(value, tuple):
            self._watch_size(value, path if user else "")
        if is_user_class(type(value)):
            self._defer(path, value)
            self._methods(path, type(value))
        if len(value) > MAX_ENTRIES and user:
            self.reach.refuse(f"it reads {path}, a {type(value).__name__} too long to be watched")
        elif len(value) <= MAX_ENTRIES:
            for key, part in children(value):
                self._slot(f"{path}[{key!r}]", value, key, part, user)

    def _module(self, path: str, module: nn.Module):
        for name in _HOOKS:
            self._watch_size(getattr(module, name))
        for hook in (hook for name in _HOOKS for hook in getattr(module, name).values()):
            if not is_library_hook(hook):
                self.reach.refuse(f"a hook on {path} ({type(module).__name__}) runs at every call")
        for entries in (module._parameters, module._buffers, module._modules):
            self._watch_size(entries)
            for name, part in entries.items():
                self._slot(f"{path}.{name}", entries, name, part, is_user_class(type(module)))
        self._defer(path, module)
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
            self.reach.codes.append(function.__code__)
            variables, attributes = names_in(function.__code__)
            self.names |= attributes
            if computed := (variables - function.__globals__.keys()) & _COMPUTED or (variables | attributes) & _ENVIRONMENT:
                self.reach.refuse(f"{name} uses {min(computed)}, in which changes cannot be seen")
            self._watch_size(vars(function))
            for key, value in vars(function).items():
                self._slot(f"{name}.{key}", vars(function), key, value, True)
            for variable in variables & function.__globals__.keys():
                self._global(f"{function.__module__}.{variable}", function.__globals__, variable)

    def _methods(self, path: str, cls: type, constructed: bool = False):
        """Walk methods of user classes that are called without being named: special methods, and those that a library class calls.

        ``constructed``: whether the program may construct objects of the class.
        """
        libraries = [base for base in cls.__mro__ if not is_user_class(base) and base is not object]
        for owner in cls.__mro__:
            if is_user_class(owner):
                self._defer(owner.__name__, owner)
                for name, method in vars(owner).items():
                    called = name.startswith(("__", "_pyro_")) or any(hasattr(base, name) for base in libraries)
                    called = called and (name not in _NOT_CALLED or (constructed and name in _CONSTRUCTORS))
                    for function in functions_of(method) if called else ():
                        self._walk(owner.__name__, function, True)

    def _defer(self, path: str, owner: Any):
        self._pending.setdefault(id(owner), (path, owner))

    def _attributes(self, path: str, owner: Any):
        if isinstance(owner, types.ModuleType):
            for name in self.names & vars(owner).keys():
                self._global(f"{owner.__name__}.{name}", vars(owner), name)
        elif isinstance(owner, type):
            self._class(owner)
        else:
            user, attributes = is_user_class(type(owner)), dict_of(owner)
            if user and (id(owner), "") not in self._slots:  # attributes may be added
                self._slots.add((id(owner), ""))
                self._watch_size(attributes)
            for name in _relevant(owner, self.names if user else None):
                if name in attributes and not (not user and name.startswith(_CACHES)):
                    self._slot(f"{path}.{name}", attributes, name, attributes[name], user)
            for name in slots_of(type(owner)):
                holder = self._visited.setdefault(("slots", id(owner)), Slots(owner))
                if name in self.names or isinstance(holder[name], (Tensor, nn.Module)) or self.names & DYNAMIC_NAMES:
                    self._slot(f"{path}.{name}", holder, name, holder[name], user)

    def _global(self, path: str, holder: dict, name: str):
        value = holder[name]
        if isinstance(value, types.ModuleType) or (isinstance(value, type) and not is_user_class(value)):
            self._walk(path, value, True)
        elif isinstance(value, types.FunctionType) and not is_user_code(inspect.unwrap(value).__code__):
            return
        else:
            self._slot(path, holder, name, value, True)

    def _class(self, cls: type):
        for name in [name for name in vars(cls) if name in self.names]:
            value = vars(cls)[name]
            for function in functions_of(value):
                self._walk(cls.__name__, function, True)
            if not functions_of(value) and not isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                holder = self._visited.setdefault(("class", cls), ClassView(cls))  # one per class
                self._slot(f"{cls.__name__}.{name}", holder, name, value, True)

    def _add_store(self, names: Iterable[str]):
        store, reach = pyro.get_param_store(), self.reach
        names = list(names)
        if names:  # clearing and loading replace the dictionary
            reach.fixed[0].append(vars(store)), reach.fixed[1].append("_params"), reach.values.append(store._params)
            reach.fixed_paths.append(STORE)
        for name in names:
            if name in store._params:
                self._slot(f"parameter {name!r}", store._params, name, store._params[name], True)


def _relevant(owner: Any, names: set[str] | None) -> Iterator[str]:
    """Attributes of an object that reached code can read; for a user class ``names`` are those in that code."""
    declared = getattr(type(owner), "read_by_programs", None)
    if declared is not None:
        yield from declared
        return
    attributes = dict_of(owner)
    computed = names is not None and bool(names & DYNAMIC_NAMES)
    inherited = any(not is_user_class(base) and base not in (object, nn.Module) for base in type(owner).__mro__)
    for name, value in list(attributes.items()):
        if isinstance(owner, nn.Module) and name in _MODULE:
            continue
        if names is None or name in names or name == "training" or isinstance(value, (Tensor, nn.Module)):
            yield name
        elif computed or inherited and not isinstance(value, (list, dict, set)):
            yield name


def _has_memory(tensor: Tensor) -> bool:
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True

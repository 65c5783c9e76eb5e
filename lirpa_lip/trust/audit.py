"""What a model's forward does that a graph, traced from one input, cannot carry: found by watching it run once.

Every tensor operation passes a dispatch mode, which follows what derives from the input, storage by storage (views
and in-place changes included), and refuses by name

* random numbers, and batch norm over the statistics of the batch itself,
* numbers and decisions read from values that derive from the input (``if``, ``item``, boolean indices),
* changes of the model's own parameters, buffers and attributes,
* casts of such values to integers or booleans whose result becomes a number again.

An operation is refused before it runs, so that a refused model is as it was.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lirpa_lip.errors import LirpaLipError, UntraceableError
from lirpa_lip.precision import callers_precision

#: Operators that hand a number, or a shape, to Python.
_READ = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select", "unique_dim",
         "_unique2", "unique_consecutive", "unique_dim_consecutive", "bincount", "histc"}  # fmt: skip
_LEAVES_TORCH = (Tensor.numpy, Tensor.tolist, Tensor.__array__)
_CONTROL = "a trace follows one way only: write it with torch.where, clamp or the like, or move it out of forward"
_CHANCE = "bounds are of one function: call .eval(), or leave noise out"
_STATE = "the output then depends on earlier calls: keep state out of forward"


def audited(model: Callable, inputs: tuple[Tensor, ...]) -> Any:
    """``model(*inputs)`` without gradients, watched.

    The global random state, the inputs and the model are left as they were.

    Raises:
        UntraceableError: the forward does what no trace can carry.
    """
    copies = tuple(t.detach().clone() for t in inputs)
    drawn = _python_generators()
    with torch.no_grad(), callers_precision(), torch.random.fork_rng(devices=_devices(copies)):
        watch = _Watch(model, copies)
        try:
            with watch, _Leaks(watch):
                output = model(*copies)
        except LirpaLipError:
            watch.restore()
            raise
        except Exception:
            # an operation that modes do not know is no fault of the model's: what fails by itself fails here again
            watch.restore()
            return model(*(t.detach().clone() for t in inputs))
        watch.check_state(output)
    if drawn != _python_generators():
        raise UntraceableError("it draws random numbers from Python's or NumPy's generator", _CHANCE)
    return output


def _python_generators() -> tuple[Any, Any]:
    # NumPy's keys are an array, which does not compare to a truth value
    return random.getstate(), [
        str(part) if isinstance(part, str) else np.asarray(part).tobytes() for part in np.random.get_state()
    ]


def _devices(tensors: tuple[Tensor, ...]) -> list[int]:
    return sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})


class _Watch(TorchDispatchMode):
    def __init__(self, model: Callable, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.modules = list(model.modules()) if isinstance(model, nn.Module) else []
        self.derived = {_storage(t) for t in inputs if t.numel()}
        self.cast: dict[StorageWeakRef, str] = {}
        self.state = {_storage(t): name for name, t in self._tensors()}
        self.read: set[StorageWeakRef] = set()
        self.before = [(m, dict(vars(m)), dict(m._buffers), dict(m._parameters)) for m in self.modules]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for module in self.modules:
            kind = type(module).__name__
            for name, value in [*vars(module).items(), *module._parameters.items(), *module._buffers.items()]:
                if isinstance(value, Tensor) and not _is_fake(value):
                    yield f"{kind}.{name}", value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        storages = [_storage(t) for t in tensors]
        self.read.update(s for s in storages if s in self.state)
        derives = any(s in self.derived for s in storages)
        name = func._schema.name
        _refuse_random(func, args, kwargs, name)
        if derives:
            self._refuse_reads(name.split("::")[-1], args)
        changed = _mutated(func, args, kwargs)
        for tensor in changed:
            owner = self.state.get(_storage(tensor))
            if owner is not None:
                raise _error(f"it changes its own {owner} ({name})", _STATE)
        result = func(*args, **kwargs)
        self._follow(name, tensors, storages, [*changed, *tree_leaves(result)], derives)
        return result

    def _refuse_reads(self, operator: str, args: Any) -> None:
        """Called where some argument derives from the input."""
        what = f"a number or decision (aten::{operator})" if operator in _READ else ""
        if operator in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor) and _storage(t) in self.derived]
            what = "a boolean index" if any(t.dtype in (torch.bool, torch.uint8) for t in indices) else what
        if what:
            raise _error(f"it takes {what} from values that depend on the input", _CONTROL)

    def _follow(self, name: str, tensors: Any, storages: Any, results: Any, derives: bool) -> None:
        """Marks results that derive from the input, and from a cast of it; refuses casts that become numbers again."""
        source = next((self.cast[s] for s in storages if s in self.cast), None)
        for result in results:
            if not isinstance(result, Tensor) or not derives:
                continue
            storage = _storage(result)
            self.derived.add(storage)
            if result.is_floating_point() or result.is_complex():
                if source is not None:
                    raise _error(
                        f"it casts values that depend on the input to {source} and computes on",
                        "that rounds them, which a trace forgets: leave out the cast, or bound the part behind it",
                    )
            elif source is not None:
                self.cast[storage] = source
            elif name in ("aten::_to_copy", "aten::copy_") and any(
                t.is_floating_point() and s in self.derived for t, s in zip(tensors, storages, strict=True)
            ):
                self.cast[storage] = str(result.dtype).removeprefix("torch.")

    def check_state(self, output: Any) -> None:
        """Refuses tensors of the model that were read, and replaced by others, and outputs that are casts."""
        for t in tree_leaves(output):
            if isinstance(t, Tensor) and _storage(t) in self.cast:
                raise _error(f"its output is a cast to {self.cast[_storage(t)]}", "bound what is cast")
        # hooks of spectral norm leave a view of a parameter as the attribute they replace: the parameter was read
        kept = {_storage(t) for module in self.modules for t in module.parameters(recurse=False)}
        for module, attributes, buffers, parameters in self.before:
            for name, old in [*attributes.items(), *buffers.items(), *parameters.items()]:
                if not isinstance(old, Tensor) or _is_fake(old) or getattr(module, name, None) is old:
                    continue
                if _storage(old) in self.read - kept:
                    self.restore()
                    raise _error(f"it reads and then replaces its own {type(module).__name__}.{name}", _STATE, "")

    def restore(self) -> None:
        """Puts replaced tensors back."""
        for module, attributes, buffers, parameters in self.before:
            for name, old in attributes.items():
                if isinstance(old, Tensor):
                    object.__setattr__(module, name, old)
            module._buffers.update(buffers)
            module._parameters.update(parameters)


class _Leaks(TorchFunctionMode):
    """What passes no dispatcher: values handed to NumPy or Python, and batch norm over the batch."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        if func in _LEAVES_TORCH and _storage(args[0]) in self.watch.derived:
            raise _error(f"it hands values that depend on the input to NumPy or Python ({func.__name__})", _CONTROL)
        if func in (torch.batch_norm, nn.functional.batch_norm) and kwargs.get("training", args[5:6] == (True,)):
            raise _error(
                "its batch norm takes the statistics of the batch (training=True, or no running statistics)",
                "an output then depends on the other samples: call .eval(), and keep running statistics",
            )
        return func(*args, **kwargs)


def _refuse_random(func: Any, args: Any, kwargs: Any, name: str) -> None:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return
    given = dict(zip((a.name for a in func._schema.arguments), args)) | kwargs
    idle = [given.get(a.name, a.default_value) for a in func._schema.arguments if a.name in ("training", "train")]
    share = [given.get(a.name, a.default_value) for a in func._schema.arguments if a.name in ("p", "dropout_p")]
    if any(v is False for v in idle) or (any(v == 0 for v in share) and "bernoulli" not in name):
        return
    raise _error(f"it draws random numbers ({name})", _CHANCE)


def _mutated(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors an operator writes into."""
    if not func._schema.is_mutable:
        return []
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return found


def _storage(tensor: Tensor) -> StorageWeakRef:
    """A key that views share, and that no later storage can take (a weak reference keeps its address)."""
    return StorageWeakRef(tensor.untyped_storage())


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.parameter.UninitializedTensorMixin) or tensor.layout != torch.strided


def _error(what: str, remedy: str, where: str | None = None) -> UntraceableError:
    return UntraceableError(what, remedy, _own_line() if where is None else where)


def _own_line() -> str:
    """The innermost frame on the stack that is neither torch's nor this file's."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file.replace("\\", "/") and file != __file__ and not file.startswith("<"):
            return f"{file.rsplit('/', 1)[-1]}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""

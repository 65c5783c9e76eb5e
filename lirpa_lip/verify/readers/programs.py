"""Networks as programs of PyTorch's own: TorchScript files, and ``torch.export``'s."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lirpa_lip.errors import ConfigError, DataError, UntrustedCodeError
from lirpa_lip.verify.network import Network, network_of


def is_program(path: Path) -> bool:
    """Whether a file holds a program, and not only tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(_is_code(name) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _is_code(name: str) -> bool:
    parts = name.split("/")
    return "code" in parts or name.endswith("serialized_exported_program.json") or "archive_format" in parts[-1]


def read_program(path: Path, shape: Sequence[int] | None, trusted: bool) -> Network:
    """The network of a TorchScript or ``torch.export`` file.

    Args:
        shape: of one input; ``torch.export`` files say it themselves.
        trusted: ``torch.export`` files are read by evaluating text in them, which can run any code.

    Raises:
        DataError: the file is damaged.
        UntrustedCodeError: a ``torch.export`` file that is not trusted.
        ConfigError: a TorchScript file without ``shape``.
    """
    with zipfile.ZipFile(path) as archive:
        exported = not any("code" in name.split("/") for name in archive.namelist())
    if exported:
        if not trusted:
            raise UntrustedCodeError("a torch.export program", str(path))
        return _exported(path)
    if shape is None:
        raise ConfigError(f"{path} does not say the shape of its input; give it, as in --input-shape 1,28,28.")
    try:
        loaded = torch.jit.load(str(path), map_location="cpu").eval()
        graph = torch.jit.freeze(loaded, optimize_numerics=False).graph
        torch._C._jit_pass_inline(graph)
        model = _Script(graph, _take_constants(graph))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path} cannot be read as TorchScript ({first}); save it again.") from error

    def original(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = loaded(x)
        return out.flatten()

    return network_of(model.eval(), shape, original, path.name)


def _take_constants(graph: Any) -> list[Tensor]:
    """Makes the tensors of a frozen graph its inputs, so that they have a precision that can be changed."""
    inputs = list(graph.inputs())
    if len(inputs) == 2 and not list(inputs[0].uses()):
        graph.eraseInput(0)  # the module itself
    found: list[Tensor] = []
    for node in list(graph.nodes()):
        if node.kind() == "prim::Constant" and node.hasAttribute("value") and node.kindOf("value") == "t":
            found.append(node.t("value").detach())
            place = graph.addInput()
            place.setType(node.output().type())
            node.output().replaceAllUsesWith(place)
            node.destroy()
    return found


class _Script(nn.Module):
    """A TorchScript graph as a module with buffers of its own; tracing goes through it."""

    def __init__(self, graph: Any, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(f"tensor{index}", tensor.clone())
        self._count = len(tensors)
        self._graph = graph
        self._function = torch._C._create_function_from_graph("forward", graph)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._function(x, *(getattr(self, f"tensor{index}") for index in range(self._count)))
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> _Script:
        copied = _Script(self._graph, [getattr(self, f"tensor{index}") for index in range(self._count)])
        return copied.train(self.training)


class _Exported(nn.Module):
    """A ``torch.export`` program; its module, which knows no eval(), is kept out of the tree of modules."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._hidden = [module]
        for index, (_, parameter) in enumerate([*module.named_parameters(), *module.named_buffers()]):
            name = f"tensor{index}"
            if isinstance(parameter, nn.Parameter):
                self.register_parameter(name, parameter)
            else:
                self.register_buffer(name, parameter)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._hidden[0](x)
        return out


def _exported(path: Path) -> Network:
    try:
        program = torch.export.load(str(path))
        shapes = [
            node.meta["val"].shape
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
        ]
    except Exception as error:
        raise DataError(f"{path} cannot be read as a torch.export program ({error}); export it again.") from error
    if len(shapes) != 1 or len(shapes[0]) < 2:
        raise DataError(
            f"{path} takes {len(shapes)} inputs; a network to be verified has one, with a batch axis first."
        )
    try:
        shape = tuple(int(size) for size in shapes[0][1:])
    except Exception as error:
        raise DataError(
            f"{path} leaves sizes of its input open: {list(shapes[0])}; export it with all fixed."
        ) from error
    model = _Exported(program.module())
    return network_of(model.eval(), shape, name=path.name)

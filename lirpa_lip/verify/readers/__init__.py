"""Networks from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lirpa_lip.errors import ConfigError, DataError
from lirpa_lip.verify.network import Network


def read_network(
    path: str | Path,
    arch: str | None = None,
    trust_arch: bool = False,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
) -> Network:
    """The network of a file or folder, told apart by name and content.

    Args:
        path: ``.onnx``; ``.safetensors``, ``.pth`` or ``.pt`` (weights, for ``arch``); a TorchScript or
            ``torch.export`` file; or a run's folder.
        arch: ``package.module:factory`` of the network, where the file holds weights alone.
        trust_arch: let a file run code that it names or holds itself.
        shape: of one input, without the batch, where the file does not say it.
        classes: how many outputs a network from weights has.

    Raises:
        DataError: there is no such file, or it is of no known kind.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"there is no network {path}; check the path.")
    if path.is_dir():
        from lirpa_lip.verify.readers.run_folder import read_run

        return read_run(path, arch, trust_arch)
    if path.suffix == ".onnx":
        from lirpa_lip.verify.readers.onnx import read_onnx

        if arch is not None:
            raise ConfigError(f"{path} holds the whole network; --arch {arch} would not be read, leave it out.")
        return read_onnx(path)
    from lirpa_lip.verify.readers.programs import is_program, read_program
    from lirpa_lip.verify.readers.weights import read_weights

    if path.suffix in (".pt", ".pt2", ".pth", ".ts") and is_program(path):
        return read_program(path, shape, trust_arch)
    if path.suffix in (".safetensors", ".pth", ".pt"):
        return read_weights(path, arch, shape, classes)
    raise DataError(
        f"{path} is of no known kind; give .onnx, .safetensors, .pth, a TorchScript or torch.export file, or the "
        "folder of a run."
    )

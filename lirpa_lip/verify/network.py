"""A network to be verified: the module that bounds are computed of, and the original that has the last word."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lirpa_lip.bounded_module import BoundedModule
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.errors import ConfigError, LirpaLipError, NonFiniteError, ShapeError, TrainingModeError
from lirpa_lip.training.models import Normalize


@dataclass(eq=False)
class Network:
    """One input ``(batch, *shape)``, one output, which is read flat.

    Attributes:
        model: in eval mode and its own precision.
        original: from one input ``(1, *shape)`` to the flat output, as the network itself computes it (onnxruntime for
            an ONNX file); it decides what is a counterexample.
        shape: of one input, without the batch.
        outputs: how many numbers come out.
        name: for messages and reports.
        class_names: what its outputs stand for, where the run that trained it says so.
    """

    model: nn.Module
    original: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    outputs: int
    name: str = "the model"
    class_names: tuple[str, ...] | None = None
    _wide: dict[tuple[LocalLipConfig, int], BoundedModule] = field(default_factory=dict, repr=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs: the model's own precision."""
        return model_dtype(self.model)

    def bounded(self, config: LocalLipConfig, steps: int = 0) -> BoundedModule:
        """The model in float64, wrapped for bounds with these settings; made once for each.

        Args:
            steps: of auto_LiRPA's optimised methods; 0 for its own default.
        """
        if (config, steps) not in self._wide:
            if len(self._wide) > 8:
                self._wide.clear()
            sample = torch.zeros(1, *self.shape, dtype=torch.float64)
            options: dict[str, object] = {"local_lip": config}
            if steps:
                options["optimize_bound_args"] = {"iteration": steps}
            with warnings.catch_warnings():
                # of code that converters write; whether the trace is the network is checked, not guessed
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                self._wide[config, steps] = BoundedModule(
                    copy.deepcopy(self.model).double(), sample, bound_opts=options
                )
        return self._wide[config, steps]

    def values(self, x: Tensor) -> Tensor:
        """Flat outputs of a batch, by the model, in the precision it has."""
        try:
            out = self.model(x)
        except RuntimeError:
            if len(x) == 1:
                raise
            out = torch.cat([self.model(part) for part in x.split(1)])  # a network for single inputs
        return out.flatten(1)

    @property
    def identity(self) -> str:
        """A digest of layers and weights."""
        digest = hashlib.sha256(f"{self.name} {self.shape}\n{self.model}".encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def model_dtype(model: nn.Module) -> torch.dtype:
    """The precision of a model's tensors; torch's default where it has none."""
    tensors = [*model.parameters(), *model.buffers()]
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())


def network_of(
    model: nn.Module,
    shape: Sequence[int],
    original: Callable[[Tensor], Tensor] | None = None,
    name: str = "the model",
) -> Network:
    """A network from a module.

    Args:
        model: in eval mode; it is copied.
        shape: of one input.
        original: what counterexamples are checked with; the module itself by default.

    Raises:
        TrainingModeError: the model is in training mode.
        ShapeError: it fails on an input of this shape, or returns no tensor with one row for each sample.
        NonFiniteError: its output at the origin is NaN or infinite.
    """
    if model.training:
        raise TrainingModeError("model", type(model).__name__)
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    sample = torch.zeros(1, *shape, dtype=model_dtype(model))
    try:
        with torch.no_grad():
            out = model(sample)
    except LirpaLipError:
        raise
    except Exception as error:
        raise ShapeError(f"{name} fails on an input of shape {tuple(sample.shape)}: {error}") from error
    if not isinstance(out, Tensor) or out.ndim < 2 or len(out) != 1:
        found = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ShapeError(f"{name} returns {found} for one input; expected one tensor (1, outputs).")
    if not bool(torch.isfinite(out).all()):
        raise NonFiniteError(f"the output of {name} at the origin")

    def itself(x: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = model(x).flatten()
        return result

    return Network(model, original or itself, tuple(shape), out.numel(), name)


class _FeatureNormalize(nn.Module):
    """(x − mean) / std, one number or one for each feature of the last axis."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def normalised(network: Network, mean: Sequence[float], std: Sequence[float]) -> Network:
    """The network behind ``(x − mean) / std``: per channel for images, per feature for flat inputs.

    Raises:
        ConfigError: not as many as there are channels or features, or a std that is not positive.
    """
    expected = network.shape[0] if len(network.shape) == 3 else network.shape[-1]
    if len(mean) != len(std) or len(mean) not in (1, expected) or min(std, default=0) <= 0:
        raise ConfigError(
            f"--mean and --std have {len(mean)} and {len(std)} numbers; the input has {expected} "
            f"{'channels' if len(network.shape) == 3 else 'features'}: give one for each, or one, and stds > 0."
        )
    first = Normalize(mean, std) if len(network.shape) == 3 else _FeatureNormalize(mean, std)
    first = first.to(network.dtype).eval()
    inner = network.original

    def original(x: Tensor) -> Tensor:
        with torch.no_grad():
            return inner(first(x))

    model = nn.Sequential(first, network.model).eval().requires_grad_(False)
    return replace(network, model=model, original=original, _wide={})

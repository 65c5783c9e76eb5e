"""What a trace may not hold: operators whose attributes the lowering to ONNX drops, casts that round, chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from lirpa_lip.errors import UnsupportedOperatorError
from lirpa_lip.wrapping.trace.dependence import Dependence, argument, dtype, sizes
from lirpa_lip.wrapping.trace.evaluate import evaluate
from lirpa_lip.wrapping.trace.moves import MOVES
from lirpa_lip.wrapping.trace.recurrent import CELLS, reason_to_refuse

#: Types that hold every value of another exactly.
_WIDER = {
    torch.float16: {torch.float32, torch.float64},
    torch.bfloat16: {torch.float32, torch.float64},
    torch.float32: {torch.float64},
}
Rule = Callable[[Any], str | None]


def node_name(node: Any) -> str:
    """Where an operator stands in the model: its module's scope, its value's name and its line of source."""
    first = next(iter(node.outputs()), None)
    scope = node.scopeName().rsplit("::", 1)[-1]
    source = node.sourceRange().split("\n")[0]
    file, _, line = source.partition("(")
    name = f"{scope}/{first.debugName() if first is not None else ''}"
    return f"{name} at {file.rsplit('/', 1)[-1]}:{line.split(')')[0]}" if line else name


def refuse(graph: Any, depends: Dependence, training: bool) -> list[str]:
    """Raises for the first operator between input and output that would be traced as something else.

    Returns:
        Names of operators that are in training mode, where the model as a whole is (``training``).

    Raises:
        UnsupportedOperatorError: naming the operator, where it stands, the reason and what to do.
    """
    unsettled = []
    for node, reason in _findings(graph, depends):
        if training and node.kind() in _TRAINING:
            unsettled.append(node_name(node))
        else:
            raise UnsupportedOperatorError(node_name(node), node.kind(), reason=reason)
    return unsettled


def _findings(graph: Any, depends: Dependence) -> Iterator[tuple[Any, str]]:
    for node in graph.nodes():
        if not any(depends.varies(v) for v in node.inputs()) and node.kind() not in _DRAWS:
            continue
        for rule in (RULES.get(node.kind()), _of_type(depends), _of_chance, _of_batch_size(depends)):
            reason = rule(node) if rule is not None else None
            if reason:
                yield node, reason
                break


def _of_type(depends: Dependence) -> Rule:
    def rule(node: Any) -> str | None:
        given = [dtype(v) for v in node.inputs() if depends.varies(v)]
        for value in node.outputs():
            made = dtype(value)
            if made is None or not value.uses() or not depends.varies(value):
                continue
            for kind in given:
                if kind is not None and kind.is_floating_point and made != kind and made not in _WIDER.get(kind, ()):
                    return (
                        f"it turns {_short(kind)} values of the network into {_short(made)}, which does not hold them "
                        "exactly: a step function, not a cast, and it has no Lipschitz rule; leave it out of the model"
                    )
        return None

    return rule


def _short(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


#: Whose training mode is a module's, or an argument.
_TRAINING = {"aten::batch_norm", "aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::rrelu",
             "aten::feature_alpha_dropout", "aten::dropout_"}  # fmt: skip
_DROPOUTS = _TRAINING - {"aten::batch_norm", "aten::rrelu"}


_DRAWS = {f"aten::{name}" for name in """
bernoulli bernoulli_ rand randn randint randperm rand_like randn_like randint_like normal normal_ uniform uniform_
exponential exponential_ multinomial poisson binomial cauchy_ log_normal_ geometric_ random_ rrelu rrelu_with_noise
native_dropout
""".split()} | _DROPOUTS  # fmt: skip


def _of_chance(node: Any) -> str | None:
    kind = node.kind()
    if kind not in _DRAWS or not any(v.uses() for v in node.outputs()):
        return None
    if kind in _DROPOUTS:
        if argument(node, 2) is False or argument(node, 1) == 0:
            return None
    elif kind == "aten::rrelu" and argument(node, 3) is False:
        return None
    return (
        "it draws random numbers, so that its output is no function of the input; call .eval() on the model, pass "
        "training=False to the functional form, or leave it out"
    )


def _of_batch_size(depends: Dependence) -> Rule:
    def rule(node: Any) -> str | None:
        if depends.reads_count(node):
            return "it calculates with the batch size, so that a sample's output depends on how many others there are"
        return None

    return rule


def _batch_norm(node: Any) -> str | None:
    if argument(node, 5):
        return (
            "it normalises by the statistics of the batch (training=True, or track_running_stats=False), where its "
            "output is no fixed function of one input; give it running statistics and call .eval() on the model"
        )
    return None


def _rounded_division(node: Any) -> str | None:
    mode = argument(node, 2)
    return None if mode is None else f"rounding_mode={mode!r} makes it {_STEP}"


def _steps(node: Any) -> str:
    return f"it is {_STEP}"


_STEP = "a step function, which has no Lipschitz rule; leave it out of the model"


def _softplus(node: Any) -> str | None:
    threshold = argument(node, 2)
    if threshold is ... or threshold < 20:
        return f"threshold={threshold} makes it jump by more than rounding; use 20, PyTorch's default, or more"
    return None


def _elu(node: Any) -> str | None:
    scales = argument(node, 2), argument(node, 3)
    return None if scales == (1, 1) else f"scale and input_scale must be 1, and are {scales}"


def _average_pool(node: Any) -> str | None:
    # what can be rewritten has been
    return None if argument(node, 6) is None else "divisor_override together with ceil_mode=True has no rule here"


def _adaptive_max_pool(node: Any) -> str | None:
    shape, size = sizes(next(iter(node.inputs()))), argument(node, 1)
    if shape is None or size is ...:
        return "its output size must be a constant"
    if any(n % k for n, k in zip(shape[-len(size) :], size)):
        return (
            f"an output of size {size} does not divide the input's {shape[-len(size) :]}, and windows of unequal size "
            "have no rule here; use a size that divides it, or max_pool"
        )
    return None


def _reduces_all(node: Any) -> str:
    return "it reduces over all axes, the batch among them; name the axes, as in dim=(1, 2, 3)"


def _squeeze(node: Any) -> str | None:
    # what keeps the batch axis has been rewritten as a reshape
    if len(list(node.inputs())) == 1:
        return "without an axis it drops the batch axis too where the batch holds one sample; name the axis to drop"
    return None


def _roll(node: Any) -> str | None:
    return None if argument(node, 2) else "without dims it moves values between samples; name the axes"


def _threshold(node: Any) -> str:
    # a clamp has been rewritten
    low, value = argument(node, 1), argument(node, 2)
    return f"it jumps from {value} to {low} at its threshold; use equal numbers, which make it a clamp"


def _hardshrink(node: Any) -> str:
    return f"it jumps to 0 at ±{argument(node, 1)}, and has no Lipschitz constant; use softshrink"


def _ordered(node: Any) -> str:
    return "it sorts more than two values, which has no rule here; use amax, amin, max_pool or MaxMin"


def _written(node: Any) -> str:
    return "it writes into a part of a tensor; put the parts together with torch.cat, torch.where or F.pad"


def _positions(node: Any) -> str:
    return (
        "its positions must be constant, the same for all samples, and leave the batch axis where it is; one that "
        "depends on the input is a step function"
    )


def _einsum(node: Any) -> str:
    return (
        "in an einsum each varying operand and the result must begin with the batch axis, which no constant has, and "
        "no index may occur twice in one operand; write it with matmul, permute and reshape"
    )


def _infinite(node: Any) -> str | None:
    # what a softmax and the like behind it could be rewritten for has been
    for value in node.inputs():
        held = evaluate(value, {})
        if isinstance(held, (float, torch.Tensor)) and bool(torch.isinf(torch.as_tensor(held)).any()):
            return (
                "it makes values infinite: a mask of minus infinity must be constant, the same for all samples, leave "
                "something in every row, and stand before a softmax, logsumexp or amax"
            )
    return None


_MASKS = "masked_fill masked_fill_ where add add_".split()
_STEPS = "floor_divide floor_divide_ sign round floor ceil trunc frac fmod remainder".split()

#: By kind: the reason to refuse an operator with these arguments, or ``None``.
RULES: dict[str, Rule] = {
    "aten::batch_norm": _batch_norm,
    "aten::div": _rounded_division,
    "aten::div_": _rounded_division,
    **{f"aten::{name}": _steps for name in _STEPS},
    **{f"aten::{name}": _ordered for name in "sort topk msort median kthvalue cummax cummin mode".split()},
    **dict.fromkeys(MOVES, _positions),
    **{f"aten::{name}": _infinite for name in _MASKS},
    "aten::copy_": _written,
    "aten::index_put_": _written,
    "aten::threshold": _threshold,
    "aten::hardshrink": _hardshrink,
    "aten::softplus": _softplus,
    "aten::elu": _elu,
    "aten::avg_pool2d": _average_pool,
    "aten::avg_pool3d": _average_pool,
    "aten::adaptive_max_pool1d": _adaptive_max_pool,
    "aten::adaptive_max_pool2d": _adaptive_max_pool,
    "aten::adaptive_max_pool3d": _adaptive_max_pool,
    "aten::squeeze": _squeeze,
    "aten::roll": _roll,
    "aten::einsum": _einsum,
    **dict.fromkeys(CELLS, reason_to_refuse),
}

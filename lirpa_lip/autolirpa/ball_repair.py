"""Makes auto_LiRPA's own methods valid for an ℓp ball with finite p, whatever operator the input meets first.

auto_LiRPA carries such a ball as the interval [x, x] with the ball noted beside it. Linear and Conv read the note; any
other operator behind the input drops it and goes on with a single point (in a normalised network, for one), and the
relaxation of a nonlinear operator at the input is built from that point too. Both 0.3 and 0.7.1 do this, in IBP and in
every method that takes intermediate bounds from it. Here

* the interval of an input is the box around its ball, which every operator reads rightly, and
* where the ball determines an interval exactly (`lirpa_lip.autolirpa.ellipsoid`), that one is taken.

auto_LiRPA computes everything else, from these intervals, as it always did, but without its "patches" where those are
invalid, for any norm: see `leave_patches`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import auto_LiRPA
from auto_LiRPA import bound_ops as ops
from torch import Tensor

from lirpa_lip.autolirpa.ellipsoid import ball_interval, input_ball, is_affine, is_ball
from lirpa_lip.autolirpa.perturbation import PerturbationLpNorm


def box_inputs(module: Any) -> None:
    """Replace the interval [x, x] of every input with a ball by the box around it. Does nothing the second time."""
    roots = module.roots() if hasattr(module, "roots") else [module[name] for name in module.root_name]
    for root in roots:
        if getattr(getattr(root, "interval", None), "ptb", None) is None:
            continue
        if is_ball(root):
            root.interval = root.lower, root.upper = input_ball(root).box
            root.linear.lower, root.linear.upper = root.interval  # these are what forward bounds read
        elif isinstance(root.perturbation, PerturbationLpNorm):
            root.interval = tuple(root.interval)  # a box already; 0.3's Concat cannot read a radius per sample


def leave_patches(module: Any) -> None:
    """Use dense matrices in CROWN, instead of patches, where those are invalid or not known to an operator.

    They are invalid for images that are not square, and for padding, kernels and strides that differ between the axes:
    auto_LiRPA takes one side for the other where it turns patches into a matrix, and its bounds are violated, or it
    reads past the end. Additions and normalisations of what is no image start no patches.
    """
    nodes = list(module._modules.values())
    variable = _variable(module, nodes)
    among = [node for node in nodes if node.name in variable]
    shapes = {node.name: _shape(node) for node in among}
    images = [node for node in among if len(shapes[node.name]) == 4]
    only_dense = any(getattr(node, "needs_matrix", False) for node in nodes)
    oblong = any(shapes[node.name][2] != shapes[node.name][3] for node in images)
    if only_dense or oblong or not all(_knows_patches(module, node, variable) for node in images):
        use_matrices(module)
    for node in among:
        if len(shapes[node.name]) != 4 and hasattr(node, "mode"):
            node.mode = "matrix"


def use_matrices(module: Any) -> None:
    """Coefficients of all layers as dense matrices from now on."""
    module.conv_mode = module.bound_opts["conv_mode"] = "matrix"
    for node in module._modules.values():
        if getattr(node, "mode", None) == "patches":
            node.mode = "matrix"


def _variable(module: Any, nodes: list) -> set[str]:
    """Names of the nodes that depend on an input."""
    variable = {node.name for node in nodes if type(node) is ops.BoundInput}
    pending = list(variable)
    while pending:
        reached = set(module[pending.pop()].output_name) - variable
        variable |= reached
        pending.extend(reached)
    return variable


#: Of auto_LiRPA's operators on images these are right in patches, activations apart.
_PATCHES = {"BoundNeg", "BoundIdentity", "BoundDropout", "BoundCast", "BoundBatchNormalization", "BoundRelu",
            "BoundLeakyRelu"}  # fmt: skip


def _knows_patches(module: Any, node: Any, variable: set[str]) -> bool:
    """Whether a node whose value is a square image takes coefficients as patches and gives valid ones on."""
    if type(node) is ops.BoundInput:
        return True
    known = getattr(node, "knows_patches", None)
    if known is not None:
        return known
    if isinstance(node, ops.BoundConv):
        readers = {isinstance(module[name], ops.BoundRelu) for name in node.output_name}
        return _is_plain(node.attr) and len(readers) <= 1
    if isinstance(node, (ops.BoundAdd, ops.BoundSub)):
        return all(parent.name in variable for parent in node.inputs)
    if type(node).__name__ == "BoundConcat":
        return node.axis == 1
    shared = {getattr(getattr(ops, name, None), "bound_backward", None) for name in _SHARED_RULES} - {None}
    return type(node).__name__ in _PATCHES or type(node).bound_backward in shared


def _is_plain(attr: Any) -> bool:
    """Whether a convolution has neither groups nor dilation, and treats both axes alike."""
    alike = all(len(set(attr[key])) == 1 for key in ("kernel_shape", "strides", "pads"))
    return alike and attr["group"] == 1 and set(attr["dilations"]) == {1}


#: Classes whose rule in patches the activations that have none of their own share.
_SHARED_RULES = ("BoundActivation", "BoundOptimizableActivation", "BoundTwoPieceLinear")


def store_every_slope(module: Any) -> None:
    """Keep α-CROWN's slopes for stable neurons too: 0.3 mixes up its two ways of storing them, and fails, on a
    convolution where more than 90 % of the neurons are unstable. Can go with 0.3."""
    if auto_LiRPA.__version__ == "0.3":
        for node in module._modules.values():
            if hasattr(node, "use_sparse_features_alpha"):
                node.use_sparse_features_alpha = False
            # it also fails, on an assertion, where a ReLU and any other activation meet
            if hasattr(node, "use_sparse_spec_alpha"):
                node.use_sparse_spec_alpha = False


def _repair_init(original: Callable) -> Callable:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        leave_patches(self)
        store_every_slope(self)

    return __init__


def _repair_ibp(original: Callable) -> Callable:
    @functools.wraps(original)
    def IBP_general(self: Any, node: Any = None, C: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        box_inputs(self)
        if node.perturbed and not hasattr(node, "interval"):
            interval = ball_interval(self, node, C)
            if interval is not None and C is not None:
                return interval  # of C @ node: not the node's own
            if interval is not None:
                node.interval = node.lower, node.upper = interval
        if not node.perturbed and node.inputs:
            # 0.3 takes a constant for its interval only once its value is there, and squares a product of constants
            self.get_forward_value(node)
        found = original(self, node, C, *args, **kwargs)
        # 0.3 takes views of what it compares a transposed value with
        return tuple(t.contiguous() if isinstance(t, Tensor) else t for t in found)

    return IBP_general


def _repair_first_linear(original: Callable) -> Callable:
    """CROWN's shortcut for a first Linear or Conv, whose exact interval it can have without a backward pass."""

    @functools.wraps(original)
    def check_IBP_first_linear(self: Any, node: Any) -> bool:
        if original(self, node):
            return True
        by_crown = self.bound_opts["optimize_bound_args"].get("directly_optimize", ())  # not in 0.3
        if not is_affine(node) or self.intermediate_constr is not None or node.name in (*self.needed_A_dict, *by_crown):
            return False
        interval = ball_interval(self, node)
        if interval is None:
            return False
        node.interval = node.lower, node.upper = interval
        return True

    return check_IBP_first_linear


def _repair_chain(original: Callable) -> Callable:
    """0.3 gives the bounds of each operator in a chain of negations and reshapes to the value the chain starts from,
    whose other readers then take them for their input's."""

    @functools.wraps(original)
    def check_IBP_intermediate(self: Any, node: Any) -> bool:
        first = node
        while not (hasattr(first, "lower") and hasattr(first, "upper")) and first.inputs:
            first = first.inputs[0]
        known = getattr(first, "interval", (getattr(first, "lower", None), getattr(first, "upper", None)))
        found = original(self, node)
        if found and first is not node:
            first.interval = first.lower, first.upper = known
        return found

    return check_IBP_intermediate


def _repair_entry(original: Callable) -> Callable:
    @functools.wraps(original)
    def entry(self: Any, *args: Any, **kwargs: Any) -> Any:
        box_inputs(self)
        return original(self, *args, **kwargs)

    return entry


# Whatever compute_bounds does, it reads the intervals of the inputs through one of these methods.
_REPAIRS = {
    "__init__": _repair_init,
    "IBP_general": _repair_ibp,
    "check_prior_bounds": _repair_entry,
    "compute_intermediate_bounds": _repair_entry,
    "check_IBP_first_linear": _repair_first_linear,
    "check_IBP_intermediate": _repair_chain,
}


def _next_in_line(name: str) -> Callable:
    """The method of the class that stands behind the mixin."""

    def inherited(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(BallRepairMixin, self), name)(*args, **kwargs)

    inherited.__name__ = name
    return inherited


class BallRepairMixin:
    """To be put before auto_LiRPA's class: ``class BoundedModule(BallRepairMixin, auto_LiRPA.BoundedModule)``."""

    __init__ = _repair_init(_next_in_line("__init__"))
    IBP_general = _repair_ibp(_next_in_line("IBP_general"))
    check_prior_bounds = _repair_entry(_next_in_line("check_prior_bounds"))
    compute_intermediate_bounds = _repair_entry(_next_in_line("compute_intermediate_bounds"))
    check_IBP_first_linear = _repair_first_linear(_next_in_line("check_IBP_first_linear"))
    check_IBP_intermediate = _repair_chain(_next_in_line("check_IBP_intermediate"))


def install_ball_repair(cls: type = auto_LiRPA.BoundedModule) -> None:
    """Repair auto_LiRPA's own class in place. Does nothing the second time."""
    for name, repair in _REPAIRS.items():
        method = getattr(cls, name)
        if not hasattr(method, "_unrepaired"):
            repaired = repair(method)
            repaired._unrepaired, repaired._was_own = method, name in vars(cls)  # type: ignore[attr-defined]
            setattr(cls, name, repaired)


def remove_ball_repair(cls: type = auto_LiRPA.BoundedModule) -> None:
    """Undo `install_ball_repair`."""
    for name in _REPAIRS:
        method: Any = vars(cls).get(name)
        if getattr(method, "_was_own", False):
            setattr(cls, name, method._unrepaired)
        elif hasattr(method, "_unrepaired"):
            delattr(cls, name)


def _shape(node: Any) -> tuple[int, ...]:
    """The traced shape of a node's value; empty for what was never evaluated, such as further outputs of batch norm."""
    value = getattr(node, "value", None)
    return tuple(node.output_shape or (() if value is None else value.shape))

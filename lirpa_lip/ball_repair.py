"""Makes auto_LiRPA's own methods valid for an ℓp ball with finite p, whatever operator the input meets first.

auto_LiRPA carries such a ball as the interval [x, x] with the ball noted beside it. Linear and Conv read the note; any
other operator behind the input drops it and goes on with a single point (in a normalised network, for one), and the
relaxation of a nonlinear operator at the input is built from that point too. Both 0.3 and 0.7.1 do this, in IBP and in
every method that takes intermediate bounds from it. Here

* the interval of an input is the box around its ball, which every operator reads rightly, and
* where the ball determines an interval exactly (`lirpa_lip.ball`), IBP takes that one.

auto_LiRPA computes everything else, from these intervals, as it always did.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import auto_LiRPA
from torch import Tensor

from lirpa_lip.ball import ball_interval, input_ball, is_ball


def box_inputs(module: Any) -> None:
    """Replace the interval [x, x] of every input with a ball by the box around it. Does nothing the second time."""
    roots = module.roots() if hasattr(module, "roots") else [module[name] for name in module.root_name]
    for root in roots:
        if is_ball(root) and getattr(getattr(root, "interval", None), "ptb", None) is not None:
            root.interval = root.lower, root.upper = input_ball(root).box
            root.linear.lower, root.linear.upper = root.interval  # these are what forward bounds read


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
        return original(self, node, C, *args, **kwargs)

    return IBP_general


def _repair_entry(original: Callable) -> Callable:
    @functools.wraps(original)
    def entry(self: Any, *args: Any, **kwargs: Any) -> Any:
        box_inputs(self)
        return original(self, *args, **kwargs)

    return entry


# Whatever compute_bounds does, it reads the intervals of the inputs through one of these methods.
_REPAIRS = {
    "IBP_general": _repair_ibp,
    "check_prior_bounds": _repair_entry,
    "compute_intermediate_bounds": _repair_entry,
}


def _next_in_line(name: str) -> Callable:
    """The method of the class that stands behind the mixin."""

    def inherited(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(BallRepairMixin, self), name)(*args, **kwargs)

    inherited.__name__ = name
    return inherited


class BallRepairMixin:
    """To be put before auto_LiRPA's class: ``class BoundedModule(BallRepairMixin, auto_LiRPA.BoundedModule)``."""

    IBP_general = _repair_ibp(_next_in_line("IBP_general"))
    check_prior_bounds = _repair_entry(_next_in_line("check_prior_bounds"))
    compute_intermediate_bounds = _repair_entry(_next_in_line("compute_intermediate_bounds"))


def install_ball_repair(cls: type = auto_LiRPA.BoundedModule) -> None:
    """Repair auto_LiRPA's own class in place. Does nothing the second time."""
    for name, repair in _REPAIRS.items():
        method = getattr(cls, name)
        if not hasattr(method, "_unrepaired"):
            repaired = repair(method)
            repaired._unrepaired = method  # type: ignore[attr-defined]
            setattr(cls, name, repaired)


def remove_ball_repair(cls: type = auto_LiRPA.BoundedModule) -> None:
    """Undo `install_ball_repair`."""
    for name in _REPAIRS:
        method = getattr(cls, name)
        if hasattr(method, "_unrepaired"):
            setattr(cls, name, method._unrepaired)

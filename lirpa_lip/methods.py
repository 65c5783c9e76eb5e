"""One name, one bound, at every door: the table from which all of them take their names.

A door is a place where a bound is asked for by name: ``compute_bounds``, ``local_lipschitz``, ``certify``,
``compare``, ``train`` (the bound inside a loss). A name means the same bound at each; in training it is estimated.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from lirpa_lip.errors import UnknownMethodError

Door = Literal["compute_bounds", "local_lipschitz", "certify", "compare", "train"]
Family = Literal["auto_LiRPA", "global", "local", "jacobian"]


@dataclass(frozen=True)
class Method:
    """One bound.

    Attributes:
        family: whose machinery computes it.
        bounds: what it is, in one line.
        kind: what its certificates are worth: ``"deterministic"``, or ``"as asked"`` (``certificate=``).
        cost: per sample; pass = one forward pass, row = one backward pass of a specification row.
        source: where it comes from.
        doors: where it can be asked for.
    """

    name: str
    family: Family
    bounds: str
    kind: str
    cost: str
    source: str
    doors: tuple[Door, ...]


_LIRPA_DOORS: tuple[Door, ...] = ("compute_bounds", "certify", "compare")
_LOCAL_DOORS: tuple[Door, ...] = ("compute_bounds", "local_lipschitz", "certify", "compare", "train")
_JACOBIAN_DOORS: tuple[Door, ...] = ("local_lipschitz",)
_OURS = "this package"


def _jacobian(name: str, bounds: str, source: str, doors: tuple[Door, ...] = _JACOBIAN_DOORS) -> Method:
    return Method(name, "jacobian", bounds, "deterministic", "rows per layer", source, doors)


_ROWS = (
    Method("ibp", "auto_LiRPA", "interval bound propagation", "deterministic", "2 passes",
           "Gowal et al., 2018", _LIRPA_DOORS),
    Method("crown-ibp", "auto_LiRPA", "CROWN over interval bounds", "deterministic", "rows",
           "Zhang et al., ICLR 2020", _LIRPA_DOORS),
    Method("crown", "auto_LiRPA", "CROWN", "deterministic", "rows of every neuron",
           "Zhang et al., NeurIPS 2018", _LIRPA_DOORS),
    Method("alpha-crown", "auto_LiRPA", "CROWN with optimised slopes", "deterministic", "steps · crown",
           "Xu et al., ICLR 2021", ("compute_bounds", "compare")),
    Method("global-product", "global", "global norm product, margins of pairs (GloRo)", "as asked", "rows",
           "Leino et al., ICML 2021", ("certify", "compare", "train")),
    Method("global-composed", "global", "global composed bound (as LipLT)", "as asked", "rows",
           "Fazlyab et al., NeurIPS 2023", ("certify", "compare")),
    Method("local-product", "local", "published local product", "as asked", "one norm per layer",
           "Huang et al., NeurIPS 2021", ("certify", "compare", "train")),
    Method("local-composed", "local", "composed bound alone", "as asked", "norms per pair of layers, rows",
           _OURS, ("compare",)),
    Method("local-lip", "local", "smaller of the composed bound and the local product", "as asked",
           "norms per pair of layers, rows", _OURS, _LOCAL_DOORS),
    Method("local-lip-crown", "local", "local-lip over CROWN's intervals, intersected with CROWN", "as asked",
           "crown + local-lip", _OURS, ("compute_bounds", "local_lipschitz", "certify", "compare")),
    Method("local-lip-tight", "local", "local-lip, pre-activations bounded again, pixels in [0, 1]", "as asked",
           "rows of every neuron", _OURS, ("compare",)),
    Method("sdp-crown", "local", "local-lip with slopes free and optimised", "as asked", "steps · rows",
           "this package; relaxation of Chiu et al., ICML 2025", ("compute_bounds", "certify", "compare")),
    Method("sdp-crown-tight", "local", "that, pre-activations bounded again, pixels in [0, 1]", "as asked",
           "rows of every neuron + steps · rows", _OURS, ("compare",)),
    Method("sdp-crown-global", "global", "our rendering of SDP-CROWN's relaxation, over balls of global radius",
           "as asked", "steps · rows", "Chiu et al., ICML 2025", ("compare",)),
    _jacobian("naive", "product of the layers' norms, no slopes known", "folklore"),
    _jacobian("fastlip", "Fast-Lip", "Weng et al., ICML 2018"),
    _jacobian("recurjac", "RecurJac", "Zhang et al., AAAI 2019"),
    _jacobian("clarke-jacobian", "Clarke Jacobian; in compare its mean value bound", _OURS,
              ("local_lipschitz", "compare")),
)  # fmt: skip

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}

#: Door -> {name of the release before -> the name of that bound now}. They go in the next release.
RENAMED: dict[Door, dict[str, str]] = {
    "certify": {"global": "global-product", "composed": "local-lip", "composed-crown": "local-lip-crown"},
    "train": {"global": "global-product", "composed": "local-lip"},
}
#: Door -> {name that stayed -> what it meant in the release before}: for files, whoever types it reads today's help.
CHANGED: dict[Door, dict[str, str]] = {
    "certify": {"local-lip": "local-product"},
    "train": {"local-lip": "local-product"},
}


def names_at(door: Door, family: Family | None = None) -> tuple[str, ...]:
    """Names that can be asked for at a door, of one family or of all.

    Example:
        >>> names_at("local_lipschitz", "jacobian")
        ('naive', 'fastlip', 'recurjac', 'clarke-jacobian')
    """
    return tuple(m.name for m in _ROWS if door in m.doors and family in (None, m.family))


def current_name(name: str, door: Door) -> str:
    """The name as it is now; for a name of the release before it warns and says the new one.

    Raises:
        UnknownMethodError: there is no such method at this door.
    """
    renamed = RENAMED.get(door, {}).get(name)
    if renamed is not None:
        warnings.warn(
            f"bound {name!r} is called {renamed!r} now; the old name goes in the next release.",
            FutureWarning,
            stacklevel=2,
        )
        return renamed
    if name not in names_at(door):
        raise UnknownMethodError(name, names_at(door), kind="bound")
    return name


def name_before(name: str, door: Door) -> str:
    """What a name meant in the release before, by its name now: for files which that release wrote."""
    return {**RENAMED.get(door, {}), **CHANGED.get(door, {})}.get(name, name)

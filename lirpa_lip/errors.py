"""Every exception of the package: one base class, and a remedy in every message.

Each class also derives from the builtin a caller would expect (``ValueError``, ``NotImplementedError``, ...), so
that code which knows nothing of this package still handles them naturally.
"""

from __future__ import annotations

from collections.abc import Iterable

INSTALL_AUTO_LIRPA = "pip install --no-deps auto_LiRPA==0.3"


class LirpaLipError(Exception):
    """Base of all errors raised on purpose by this package."""


class ShapeError(LirpaLipError, ValueError):
    """A tensor has the wrong shape."""


class NonFiniteError(LirpaLipError, ValueError):
    """A weight, an input, a radius or a computed bound is NaN or infinite where it must be finite."""

    def __init__(self, quantity: str, remedy: str = "check the model's weights and the input") -> None:
        self.quantity = quantity
        super().__init__(f"{quantity} contains NaN or infinite values; {remedy}.")


class ConfigError(LirpaLipError, ValueError):
    """A setting has a value it cannot have."""


class UnknownMethodError(ConfigError):
    """A method, option or other name which must be one of a list is none of them.

    Args:
        name: what was asked for.
        choices: what may be asked for.
        kind: what is being named, as in ``unknown <kind> 'x'``.
    """

    def __init__(self, name: object, choices: Iterable[str], kind: str = "method") -> None:
        self.name = name
        self.kind = kind
        self.choices = tuple(choices)
        super().__init__(f"unknown {kind} {name!r}; choose one of: {', '.join(map(repr, self.choices))}.")


class UnsupportedNormError(ConfigError, NotImplementedError):
    """A bound was asked for in a norm it does not exist in."""

    def __init__(self, norm: object, what: str, supported: Iterable[object] = (2,)) -> None:
        self.norm = norm
        self.supported = tuple(supported)
        listed = ", ".join(map(str, self.supported))
        super().__init__(f"{what} is not available for norm={norm}; it supports norm={listed}.")


class UnsupportedOperatorError(LirpaLipError, NotImplementedError):
    """The model holds an operator, or a graph structure, for which a method has no valid rule.

    Args:
        node: name of the node in the traced graph.
        operator: class or operator name of that node.
        supported: the operators which would have been accepted.
        reason: what is missing, where "no rule" alone would not tell.
    """

    def __init__(self, node: str, operator: str, supported: Iterable[str] = (), reason: str = "") -> None:
        self.node = node
        self.operator = operator
        self.supported = tuple(sorted(supported))
        message = f"operator {operator} at node {node!r} is not supported"
        if reason:
            message += f": {reason}"
        if self.supported:
            message += f"; supported are: {', '.join(self.supported)}"
        super().__init__(message + ".")


class UntraceableError(LirpaLipError, NotImplementedError):
    """The model's forward does something that no graph traced from one input can carry.

    Args:
        what: what it does, as in ``"it draws random numbers (aten::rand_like)"``.
        remedy: what to do instead.
        where: file, line and function of the model's own code, where known.
    """

    def __init__(self, what: str, remedy: str, where: str = "") -> None:
        self.what, self.where = what, where
        super().__init__(f"the model cannot be bounded: {what}{f' at {where}' if where else ''}; {remedy}.")


class TraceMismatchError(LirpaLipError, RuntimeError):
    """The traced graph does not compute what the model computes, so that its bounds would be about another function.

    Args:
        found, expected: the graph's and the model's value where they differ most.
        tolerance: how far rounding may take them apart there.
        node: name of the traced node where they part, if it was found.
        reason: what is the likely cause, and what to do.
    """

    def __init__(self, found: float, expected: float, tolerance: float, node: str = "", reason: str = "") -> None:
        self.found, self.expected, self.tolerance, self.node = found, expected, tolerance, node
        at = f" They part at node {node}." if node else ""
        super().__init__(
            f"the traced graph is not the model: it computes {found:.9g} where the model computes {expected:.9g}, and "
            f"rounding explains a difference of {tolerance:.2g} at most.{at} {reason}"
        )


class InvalidBoundError(LirpaLipError, ArithmeticError):
    """A method returned bounds that are none: NaN, a lower bound above the upper one, or a value seen outside.

    Args:
        method: the method whose bounds they are.
        reason: what is wrong with them, with numbers.
        remedy: what does work.
    """

    def __init__(self, method: str, reason: str, remedy: str) -> None:
        self.method, self.reason = method, reason
        super().__init__(f"method={method!r} gave bounds that are not valid: {reason}; {remedy}.")


class DomainError(LirpaLipError, ValueError):
    """The inputs of an operator may reach where it is not defined, or has a pole.

    Args:
        node: name of the node in the traced graph.
        operator: class or operator name of that node.
        reason: which inputs it may get, and which it is defined for.
    """

    def __init__(self, node: str, operator: str, reason: str) -> None:
        self.node = node
        self.operator = operator
        super().__init__(
            f"operator {operator} at node {node!r} has no bound here: {reason}; make eps smaller, use a method with "
            "tighter intermediate bounds, or keep the input away from there in the model (clamp it, add a constant)."
        )


class MethodFailedError(LirpaLipError, RuntimeError):
    """A method of auto_LiRPA failed on a network or a call it does not know how to handle.

    Args:
        method: which.
        reason: what it raised.
        node: name of the node in the traced graph where it did, if it was at one.
        operator: class name of that node.
    """

    def __init__(self, method: object, reason: str, node: str = "", operator: str = "") -> None:
        self.method = method
        self.node = node
        self.operator = operator
        where = f" at {operator} node {node!r}" if node else ""
        super().__init__(
            f"auto_LiRPA's method {method!r} failed{where} ({reason}); check the shapes of x and C, or use "
            "method='local-lip' or 'ibp', which need none of what failed."
        )


class CertificateError(LirpaLipError, ValueError):
    """An estimate, which is not a bound, was asked for where a certificate is needed."""


class TrainingModeError(LirpaLipError, RuntimeError):
    """A module whose output depends on the whole batch, or on chance, is in training mode."""

    def __init__(self, node: str, operator: str) -> None:
        self.node = node
        self.operator = operator
        super().__init__(
            f"{operator} at node {node!r} is in training mode, where its output is no fixed function of one input; "
            "call .eval() on the model before it is bounded."
        )


class DataError(LirpaLipError, ValueError):
    """A data set is absent, damaged, or not what it is said to be."""


class CheckpointError(LirpaLipError, ValueError):
    """A checkpoint is absent, damaged, or belongs to another model or configuration."""


class LockedError(LirpaLipError, RuntimeError):
    """Another process works in a folder.

    Args:
        owner: who, as in "process 12 on host".
        file: the lock, where it must be removed by hand if that process is gone.
    """

    def __init__(self, folder: str, owner: str, file: str | None = None) -> None:
        hand = "" if file is None else f" If it is gone for certain, delete {file}."
        super().__init__(f"{owner} is at work in {folder}: wait for it, or choose another --out.{hand}")


class RunInterruptedError(LirpaLipError, RuntimeError):
    """Somebody, or the system, stopped a run; the message says what is kept and how to go on.

    Args:
        signal_number: the signal that stopped it.
    """

    def __init__(self, message: str, signal_number: int = 2) -> None:
        self.signal_number = signal_number
        super().__init__(message)


class UntrustedCodeError(CheckpointError):
    """A file names a module of somebody's own, and importing it, which runs its code, was not allowed.

    Args:
        arch: the ``module:factory`` in the file.
        file: which file, as in "the checkpoint".
    """

    def __init__(self, arch: str, file: str) -> None:
        self.arch = arch
        super().__init__(
            f"{file} names code of its own as the network: {arch!r}. Importing it would run it; if you trust it, add "
            f"--trust-arch (in Python: trust_arch=True), or name the network yourself: --arch {arch}"
        )


class DivergedError(LirpaLipError, ArithmeticError):
    """Training or an iteration produced a NaN or infinite value and was stopped."""


class MissingDependencyError(LirpaLipError, ImportError):
    """A package which is needed here is not installed; the message holds the command that installs it."""

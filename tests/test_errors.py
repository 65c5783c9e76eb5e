import inspect

import pytest

from lirpa_lip import errors

EXAMPLES = {
    errors.LirpaLipError: ("anything",),
    errors.ShapeError: ("anything",),
    errors.NonFiniteError: ("the weight of 'fc'",),
    errors.ConfigError: ("anything",),
    errors.UnknownMethodError: ("loca-lip", ["local-lip", "CROWN"]),
    errors.UnsupportedNormError: (1, "the product bound"),
    errors.UnsupportedOperatorError: ("/conv1", "BoundSoftmax", ["BoundRelu", "BoundConv"], "two inputs vary"),
    errors.UntraceableError: ("it draws random numbers", "leave noise out", "model.py:3 in forward"),
    errors.TraceMismatchError: (1.0, 2.0, 1e-6, "/conv1", "Wrap the model again."),
    errors.InvalidBoundError: ("CROWN", "they contain NaN", 'use method="local-lip"'),
    errors.DomainError: ("/log", "BoundLog", "its input may lie in [-1, 1]"),
    errors.MethodFailedError: ("crown", "IndexError: tuple index out of range", "/conv1", "BoundConv"),
    errors.CertificateError: ("anything",),
    errors.TrainingModeError: ("bn1", "BatchNorm"),
    errors.DataError: ("anything",),
    errors.CheckpointError: ("anything",),
    errors.LockedError: ("runs/one", "process 12 on host"),
    errors.RunInterruptedError: ("stopped; go on with --resume",),
    errors.UntrustedCodeError: ("module:factory", "the checkpoint"),
    errors.DivergedError: ("anything",),
    errors.MissingDependencyError: ("anything",),
}
BUILTINS = {
    errors.ShapeError: ValueError,
    errors.NonFiniteError: ValueError,
    errors.ConfigError: ValueError,
    errors.UnknownMethodError: ValueError,
    errors.UnsupportedNormError: NotImplementedError,
    errors.UnsupportedOperatorError: NotImplementedError,
    errors.UntraceableError: NotImplementedError,
    errors.TraceMismatchError: RuntimeError,
    errors.InvalidBoundError: ArithmeticError,
    errors.DomainError: ValueError,
    errors.MethodFailedError: RuntimeError,
    errors.CertificateError: ValueError,
    errors.TrainingModeError: RuntimeError,
    errors.DataError: ValueError,
    errors.CheckpointError: ValueError,
    errors.LockedError: RuntimeError,
    errors.RunInterruptedError: RuntimeError,
    errors.UntrustedCodeError: ValueError,
    errors.DivergedError: ArithmeticError,
    errors.MissingDependencyError: ImportError,
}


def test_every_class_has_an_example_here():
    defined = {c for c in vars(errors).values() if inspect.isclass(c) and c.__module__ == errors.__name__}
    assert defined == set(EXAMPLES) == {*BUILTINS, errors.LirpaLipError}


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_is_caught_as_ours_and_as_the_builtin(kind):
    for base in (errors.LirpaLipError, BUILTINS.get(kind, Exception)):
        with pytest.raises(base):
            raise kind(*EXAMPLES[kind])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.UnknownMethodError, ["'loca-lip'", "'local-lip'", "'CROWN'"]),
        (errors.UnsupportedOperatorError, ["/conv1", "BoundSoftmax", "BoundConv, BoundRelu", "two inputs vary"]),
        (errors.MethodFailedError, ["'crown'", "tuple index", "BoundConv", "/conv1", "local-lip"]),
        (errors.NonFiniteError, ["the weight of 'fc'", "NaN"]),
        (errors.UntraceableError, ["random numbers", "model.py:3", "leave noise out"]),
        (errors.TraceMismatchError, ["not the model", "/conv1", "1e-06", "Wrap"]),
        (errors.InvalidBoundError, ["'CROWN'", "NaN", "local-lip"]),
        (errors.TrainingModeError, ["bn1", "BatchNorm", ".eval()"]),
        (errors.UnsupportedNormError, ["norm=1", "norm=2", "the product bound"]),
    ],
)
def test_message_says_what_and_what_to_do(kind, words):
    message = str(kind(*EXAMPLES[kind]))
    assert all(word in message for word in words), message

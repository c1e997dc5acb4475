"""Checks types and shapes in the signatures of this project's functions while the tests run.

pytest's option `--jaxtyping-packages` decorates every function by `jaxtyping.jaxtyped(typechecker=beartype)`,
which binds the arguments by `inspect` and checks all of them twice. The decorator here makes the same checks
once: of parameters and result, with sizes that agree within a call. Where types, dtypes and shapes decide, it
does not check again what has passed: inverse kinematics calls such functions 500,000 times.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable
from jaxtyping import AbstractArray, TypeCheckError

_jaxtyped = jaxtyping.jaxtyped
_RULES = BeartypeConf(violation_type=TypeCheckError)
_ARRAYS = {np.ndarray, torch.Tensor}
_NUMBERS = {int, float, bool, type(None)}


def checked(target: Callable) -> Callable:
    """A function, or a dataclass with its `__init__`, whose calls are checked.

    Raises:
        TypeCheckError: a TypeError, by the call, where a value is not of its annotation.
    """
    if inspect.isclass(target):
        if dataclasses.is_dataclass(target) and "__init__" in vars(target):
            target.__init__ = checked(target.__init__)
        return target
    if not target.__annotations__:
        return target
    # beartype alone checks a generator's arguments at its first `next`, and wants quoted names resolved.
    quoted = any(isinstance(annotation, str) for annotation in target.__annotations__.values())
    if quoted or inspect.isgeneratorfunction(target):
        return _jaxtyped(target, typechecker=beartype)
    within = beartype(conf=_RULES)(target)

    @functools.wraps(target)
    def call(*arguments: object, **named: object) -> object:
        with _jaxtyped("context"):
            return within(*arguments, **named)

    return _once_per_shape(target, call) if _depends_on_shapes(target) else call


def _depends_on_shapes(target: Callable) -> bool:
    return inspect.isfunction(target) and all(
        annotation in _NUMBERS or annotation is None or _is_array(annotation)
        for annotation in target.__annotations__.values()
    )


def _is_array(annotation: object) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, AbstractArray)


def _once_per_shape(target: Callable, call: Callable) -> Callable:
    passed = {}  # shapes of the arguments -> shapes of their results
    signature = inspect.signature(target)
    is_method = next(iter(signature.parameters), None) == "self"

    def check(arguments: tuple, named: dict, result: object) -> None:
        values = {**signature.bind(*arguments, **named).arguments, "return": result}
        with _jaxtyped("context"):
            for name, annotation in target.__annotations__.items():
                if name in values:
                    die_if_unbearable(values[name], annotation, conf=_RULES)

    @functools.wraps(target)
    def known(*arguments: object, **named: object) -> object:
        given = _shapes((*arguments[is_method:], *named, *named.values()))
        if given not in passed:
            result = call(*arguments, **named)
            if given is not None:
                passed[given] = {_shapes((result,))}
            return result
        result = target(*arguments, **named)
        found = _shapes((result,))
        if found is None or found not in passed[given]:
            check(arguments, named, result)
            passed[given].add(found)
        return result

    return known


def _shapes(values: Iterable[object]) -> tuple | None:
    """What decides whether values are of an annotation; None where that is more than types and shapes."""
    found = []
    for value in values:
        kind = type(value)
        if kind in _ARRAYS:
            found.append((kind, value.dtype, value.shape))
        elif kind in _NUMBERS:
            found.append(kind)
        elif kind is str:  # a parameter's name
            found.append(value)
        else:
            return None
    return tuple(found)


def install() -> None:
    """Replace the decorator that the import hook names, before the first of our packages is imported."""

    def jaxtyped(*target: object, **options: object) -> object:
        return (
            checked
            if not target and options.get("typechecker") is not None
            else _jaxtyped(*target, **options)
        )

    jaxtyping.jaxtyped = jaxtyped

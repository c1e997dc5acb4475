"""Modules that compute in their weights' own precision, usually float32, whatever the autocast."""

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ai_wam.utils.autocast import full_precision


def fp32_modules(network: nn.Module, names: Collection[str]) -> dict[str, nn.Module]:
    """The outermost modules whose dotted names have one of `names` as a part, by their dotted names."""
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        outer = found and name.startswith(f"{next(reversed(found))}.")
        if not outer and not set(names).isdisjoint(name.split(".")):
            found[name] = module
    return found


def keep_in_fp32(module: nn.Module) -> None:
    """Make a module compute without autocast, in the precision of its weights (float32 if it has none).

    Its results have the precision named by an argument, or else that of its first tensor, so that the tokens
    around it keep theirs. Names, weights and hooks stay as they are.
    """
    kind: Any = type(module)
    module.__class__ = _fp32_class(kind)


@cache
def _fp32_class(kind: Any) -> Any:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = list(_leaves((args, kwargs)))
        tensors = [value for value in given if isinstance(value, Tensor)]
        asked = [value for value in given if isinstance(value, torch.dtype)]
        asked += [value.dtype for value in tensors if value.is_floating_point()]
        own = next((weight.dtype for weight in self.parameters()), torch.float32)
        device = tensors[0].device if tensors else torch.device("cpu")
        with full_precision(device):
            found = kind.forward(self, *_cast(args, own), **_cast(kwargs, own))
        return _cast(found, asked[0]) if asked else found

    def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        """Pickled by its original class, since this one has no importable name."""
        _, _, *state = kind.__reduce_ex__(self, protocol)
        return (_empty, (kind,), *state)

    added = {"forward": forward, "__reduce_ex__": reduce, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), added)


def _empty(kind: Any) -> Any:
    made = _fp32_class(kind)
    return made.__new__(made)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if not isinstance(value, tuple):
        yield value
        return
    for part in value:
        yield from _leaves(part)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors and floating dtypes, changed to `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, torch.dtype):
        return dtype if value.is_floating_point else value
    if isinstance(value, Mapping):
        return {name: _cast(part, dtype) for name, part in value.items()}
    return tuple(_cast(part, dtype) for part in value) if type(value) is tuple else value

"""Islands of precision: modules that compute in their weights' own precision whatever the autocast."""

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ai_wam.utils.autocast import full_precision


def islands(network: nn.Module, names: Collection[str]) -> dict[str, nn.Module]:
    """The outermost modules whose dotted names have one of `names` as a part, by their dotted names."""
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        outer = found and name.startswith(f"{next(reversed(found))}.")
        if not outer and not set(names).isdisjoint(name.split(".")):
            found[name] = module
    return found


def keep_precise(module: nn.Module) -> None:
    """Let a module compute without autocast, in the precision of its weights (float32 if it has none).

    Its results come in the precision that it was asked for by an argument, or else in that of its first
    tensor: the tokens around it stay as small as they were. Names, weights and hooks stay as they are.
    """
    kind: Any = type(module)
    module.__class__ = _precise(kind)


@cache
def _precise(kind: Any) -> Any:
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
        """The class is made anew on the other side, where nothing has its name."""
        _, _, *state = kind.__reduce_ex__(self, protocol)
        return (_empty, (kind,), *state)

    added = {"forward": forward, "__reduce_ex__": reduce, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), added)


def _empty(kind: Any) -> Any:
    precise = _precise(kind)
    return precise.__new__(precise)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if not isinstance(value, tuple):
        yield value
        return
    for part in value:
        yield from _leaves(part)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors, and floating types that are asked for, changed to `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, torch.dtype):
        return dtype if value.is_floating_point else value
    if isinstance(value, Mapping):
        return {name: _cast(part, dtype) for name, part in value.items()}
    return tuple(_cast(part, dtype) for part in value) if type(value) is tuple else value

"""Weight files, read as tensors by name; no code in a file is ever run."""

import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from ai_wam.errors import InvalidValue, UserError


def read_torch(path: str | Path) -> dict[str, Any]:
    """Content of a file that `torch.save` wrote; tensors are mapped, not read.

    Raises:
        ValueError: no such file, damaged, or anything else than plain values and tensors by name.
    """
    if not Path(path).is_file():
        raise InvalidValue(f"{str(path)!r} is no file; give one that torch.save wrote")
    try:
        mapped = zipfile.is_zipfile(path)  # files from before torch 1.6 are none and are read whole
        with warnings.catch_warnings(action="ignore"):  # of other pickle protocols, before they are refused
            saved: object = torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except Exception as error:  # a damaged or foreign file fails in any way, inside torch and pickle
        raise InvalidValue(
            f"{str(path)!r} is damaged, or holds more than plain values and tensors "
            f"({_first_line(error)}); copy or download it again. Code in such files is never run"
        ) from error
    if not isinstance(saved, dict):
        raise InvalidValue(f"{str(path)!r} holds a {type(saved).__name__}, expected values by their names")
    return saved


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ValueError: unreadable or damaged.
    """
    with naming_damaged_file(path):
        return load_file(path)


@contextmanager
def naming_damaged_file(path: Path) -> Iterator[None]:
    """Context in which errors of a damaged safetensors file name the file.

    Raises:
        ValueError: in place of what the reader says.
    """
    try:
        yield
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise InvalidValue(f"{path} is damaged ({_first_line(error)}); copy or download it again") from error


def check_weights(weights: object, where: str) -> dict[str, Tensor]:
    """Weights by their names, each of them finite.

    Raises:
        ValueError: something else than tensors by name, or a tensor that holds NaN or infinity.
    """
    found = tensors_by_name(weights, where)
    for name, value in found.items():
        check_finite(value, name, where)
    return found


def tensors_by_name(weights: object, where: str) -> dict[str, Tensor]:
    """Weights by their names; no value is read.

    Raises:
        ValueError: something else.
    """
    if not isinstance(weights, Mapping):
        raise InvalidValue(f"{where} holds a {type(weights).__name__}, expected tensors by their names")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InvalidValue(
                f"{where}: {name!r} is a {type(value).__name__}, expected a tensor by its name"
            )
    return dict(weights)


def check_finite(value: Tensor, name: str, where: str) -> None:
    """Refuse NaN and infinity, which would spread to everything a network computes.

    Raises:
        ValueError: with the tensor's name.
    """
    if not is_finite(value):
        raise InvalidValue(
            f"{where}: {name} holds NaN or infinity; the file is damaged, or the training that wrote it "
            "diverged: take an earlier checkpoint, or download it again"
        )


def is_finite(value: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; of a sharded one, the part that this process holds.

    Smallest and largest value come from one pass over the memory; `isfinite` would write a mask as large.
    """
    if not value.is_floating_point() or not value.numel() or value.is_meta:
        return True
    local = value.to_local() if isinstance(value, DTensor) else value
    if not local.numel():  # fewer rows than processes
        return True
    plain = local.detach().float() if value.element_size() == 1 else local.detach()  # float8 has no order
    return bool(torch.stack(torch.aminmax(plain)).isfinite().all())


def load_weights(load: Callable[[Any], Any], weights: Mapping[str, Any], kind: str) -> Any:
    """Call a module's `load_state_dict`.

    Args:
        load: of the module.
        weights: all of it.
        kind: what the module is, for the error.

    Raises:
        ValueError: other names or shapes than the module's.
    """
    try:
        return load(weights)
    except RuntimeError as error:
        said = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        more = f" and {len(said) - 3} more lines" if len(said) > 3 else ""
        raise InvalidValue(
            f"these weights are not those of this {kind}: {' '.join(said[:3])[:600]}{more}"
        ) from error


def refuse_broken(module: Any, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Load hook of a module: refuse weights that are not finite, also those that Lightning reads itself.

    Raises:
        ValueError: a weight that is not finite.
    """
    for name, value in state.items():
        check_finite(value, name, "the checkpoint")


def _first_line(error: BaseException) -> str:
    said = (str(error).splitlines() or [""])[0].rstrip(".")
    return said if " " in said else f"{type(error).__name__} {said}".strip()

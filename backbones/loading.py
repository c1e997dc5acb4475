"""Loading parts of a released checkpoint in diffusers' layout, with one clear error for what is missing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

_T = TypeVar("_T")


def load_part(
    kind: Any, pretrained: str, subfolder: str, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """One part (transformer, vae, text_encoder, tokenizer) of a local folder or a hub repository.

    Args:
        kind: a class with `from_pretrained`.
        pretrained: a local folder in diffusers' layout, or a hub id; the hub client honours HF_HUB_OFFLINE.
        subfolder: name of the part.
        dtype: of the weights; ignored by tokenizers.
        options: passed on.

    Raises:
        FileNotFoundError: the part, or one of its files, is not there; the message says how to fetch it.
        ValueError: weights of other shapes than the part's configuration says.
    """
    local = Path(pretrained).is_dir()
    if local and not (Path(pretrained) / subfolder).is_dir():
        raise FileNotFoundError(
            _missing(pretrained, subfolder, f"there is no folder {subfolder!r} in it", local)
        )
    try:
        return kind.from_pretrained(pretrained, subfolder=subfolder, **_weights(kind, dtype), **options)
    except OSError as error:
        raise FileNotFoundError(_missing(pretrained, subfolder, str(error).split("\n")[0], local)) from error
    except ValueError as error:
        if "expected shape" not in str(error):
            raise
        reason = str(error).split(". If you want")[0].removeprefix("Cannot load ").strip()
        raise ValueError(
            f"the weights in {subfolder!r} of {pretrained!r} do not fit its own config.json ({reason}); "
            "take both from one release"
        ) from error


def load_codec(
    kind: Any, pretrained: str | None, architecture: dict[str, Any] | None, dtype: torch.dtype
) -> Any:
    """A released video autoencoder, or a new one of a given size.

    Raises:
        ValueError: neither or both of `pretrained` and `architecture`.
        FileNotFoundError: an incomplete checkpoint.
    """
    if (pretrained is None) == (architecture is None):
        raise ValueError(
            f"{kind.__name__}: give either `pretrained` (released weights) or `architecture` (a new one)"
        )
    if pretrained is not None:
        return load_part(kind, pretrained, "vae", dtype)
    new = kind(**(architecture or {}))
    return new if dtype == torch.float32 else new.to(dtype)


def _weights(kind: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The options of classes that hold weights: safetensors only, so nothing is unpickled."""
    if not isinstance(kind, type) or not issubclass(kind, torch.nn.Module):
        return {}
    name = "dtype" if kind.__module__.startswith("transformers.") else "torch_dtype"
    return {name: dtype, "use_safetensors": True}


def _missing(pretrained: str, subfolder: str, reason: str, local: bool) -> str:
    way = (
        "Download it again into that folder, or pass the hub id."
        if local
        else f"Fetch it with: hf download {pretrained} --include '{subfolder}/*' "
        "(or pass a local folder as `pretrained`)."
    )
    return f"cannot load {subfolder!r} of the pretrained model {pretrained!r}: {reason}. {way}"


def load_denoiser(
    kind: Any,
    folder: str,
    pretrained: str | None,
    architecture: dict[str, Any] | None,
    dtype: torch.dtype,
    fixed: Mapping[str, int],
    check: Callable[[Mapping[str, Any]], None],
) -> Any:
    """A denoiser with released weights, or a new one of a given size.

    Args:
        kind: its class in diffusers.
        folder: where a checkpoint keeps it.
        pretrained: a local folder or hub id.
        architecture: constructor arguments of a new one.
        dtype: of released weights.
        fixed: constructor arguments of a new one that follow from codec, prompts and images.
        check: looks at the configuration before any weight is read, and raises where it does not fit.

    Raises:
        ValueError: neither or both of `pretrained` and `architecture`, an architecture that contradicts what
            is fixed, or a checkpoint of another family.
        FileNotFoundError: an incomplete checkpoint.
    """
    if (pretrained is None) == (architecture is None):
        raise ValueError(
            f"{kind.__name__}: give either `pretrained` (released weights) or `architecture` (a new one)"
        )
    if pretrained is not None:
        config = load_config(kind, pretrained, folder)
        check(config)
        return load_part(kind, pretrained, folder, dtype)
    asked = architecture or {}
    clash = sorted(key for key in fixed if key in asked and asked[key] != fixed[key])
    if clash:
        raise ValueError(
            f"{kind.__name__}: {clash} follow from codec, prompts and images ({dict(fixed)}); leave them out"
        )
    denoiser = kind(**{**asked, **fixed})
    check(denoiser.config)
    return denoiser


def load_config(kind: Any, pretrained: str, folder: str) -> Mapping[str, Any]:
    """The full configuration of a checkpoint's denoiser, defaults included; no weight is read.

    Raises:
        ValueError: the checkpoint holds another class.
        FileNotFoundError: it holds none.
    """
    local = Path(pretrained).is_dir()
    try:
        saved = kind.load_config(pretrained, subfolder=folder)
    except OSError as error:
        raise FileNotFoundError(_missing(pretrained, folder, str(error).split("\n")[0], local)) from error
    found = saved.get("_class_name", kind.__name__)
    if found not in [base.__name__ for base in kind.__mro__]:
        raise ValueError(
            f"{pretrained!r} holds a {found}, this backbone needs a {kind.__name__}; "
            "take the YAML of that model's family from configs/backbone"
        )
    with torch.device("meta"):
        return kind.from_config(saved).config


def or_released(part: _T | None, name: str, pretrained: str | None, load: Callable[[str], _T]) -> _T:
    """A given part of a backbone, or the released model's own.

    Raises:
        ValueError: not given, and there is no released model to take it from.
    """
    if part is not None:
        return part
    if pretrained is None:
        raise ValueError(f"a backbone from scratch needs its `{name}`; only released weights bring their own")
    return load(pretrained)

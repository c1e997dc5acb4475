"""Loading parts of a released checkpoint in diffusers' layout, with one clear error for what is missing."""

from pathlib import Path
from typing import Any

import torch


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

"""A trained policy in one small file, as the package carries one for `ai-wam demo`, and back.

python -m ai_wam.files.packed_policy x.ckpt policy.safetensors
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from safetensors import safe_open
from safetensors.torch import save

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import atomic_file
from ai_wam.files.weights import check_weights, naming_damaged_file, read_safetensors, read_torch

_MODEL, _STEPS = "model", "steps"  # keys of the file's metadata
_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def pack(checkpoint: Path, file: Path) -> None:
    """Write the weights of a checkpoint in half precision, and the settings of its model, into one file.

    Args:
        checkpoint: written by `ai-wam fit`; its averaged weights are taken where it has some.
        file: a safetensors file, with the model's class and arguments as JSON in its metadata.

    Raises:
        ValueError: a checkpoint that does not say which model it belongs to, or weights that are not finite.
    """
    saved = read_torch(checkpoint)
    settings = dict(saved.get("hyper_parameters", {}))
    if "_class_path" not in settings:
        raise InvalidValue(
            f"{checkpoint} does not say which model it belongs to; `ai-wam fit` writes such files"
        )
    settings.pop("_instantiator", None)
    weights = check_weights(saved.get("state_dict"), f"the state_dict of {str(checkpoint)!r}")
    halves = {name: value.to(torch.float16).contiguous() for name, value in weights.items()}
    about = {_MODEL: json.dumps(settings), _STEPS: str(saved.get("global_step", 0))}
    content = save(check_weights(halves, f"{checkpoint} in half precision"), about)
    with atomic_file(file) as stream:
        stream.write(content)


def unpack(file: Path, checkpoint: Path) -> None:
    """Write a checkpoint that `ai-wam test` and its like take.

    Raises:
        ValueError: a damaged file, or one that `pack` did not write.
    """
    weights = {name: value.float() for name, value in read_safetensors(file).items()}
    with naming_damaged_file(file), safe_open(file, "pt") as opened:
        about = opened.metadata() or {}
    if _MODEL not in about:
        raise InvalidValue(f"{file} says nothing of a model; ai_wam.files.packed_policy writes files that do")
    content: dict[str, Any] = {
        "state_dict": weights,
        "hyper_parameters": {**json.loads(about[_MODEL]), "_instantiator": _INSTANTIATOR},
        "global_step": int(about[_STEPS]),
        "epoch": 0,
        "pytorch-lightning_version": lightning.__version__,
    }
    with atomic_file(checkpoint) as stream:
        torch.save(content, stream)


if __name__ == "__main__":
    pack(*map(Path, sys.argv[1:]))

"""The released Action Images checkpoint (arXiv 2604.06168) in our names, and back.

It is a Wan 2.2 TI2V denoiser in the names of the original Wan code, with two modules more in every block:
`cam_encoder`, which becomes `backbones.conditions.block_conditions.CameraEncoders`, and `projector`, a linear
map after the output projection of self-attention, which is multiplied into it.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from ai_wam.errors import InvalidValue
from ai_wam.files.weights import check_weights, read_safetensors, read_torch

_EMBEDDER = "condition_embedder"
_OUTER = {  # their names: diffusers' names
    "patch_embedding": "patch_embedding",
    "text_embedding.0": f"{_EMBEDDER}.text_embedder.linear_1",
    "text_embedding.2": f"{_EMBEDDER}.text_embedder.linear_2",
    "time_embedding.0": f"{_EMBEDDER}.time_embedder.linear_1",
    "time_embedding.2": f"{_EMBEDDER}.time_embedder.linear_2",
    "time_projection.1": f"{_EMBEDDER}.time_proj",
    "head.head": "proj_out",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_BLOCK = {
    **{f"self_attn.{theirs}": f"attn1.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"cross_attn.{theirs}": f"attn2.{ours}" for theirs, ours in _ATTENTION.items()},
    "norm3": "norm2",  # the only norm with weights comes before cross-attention; they call it the third
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_NORMS = {
    f"{theirs}.{norm}.weight": f"{ours}.{norm}.weight"
    for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for norm in ("norm_q", "norm_k")
}
_PROJECTOR = "projector"
_PARTS = ("weight", "bias")

POOLED_CAMERAS = (48, 16, 16)  # channels and grid to which a view's camera latents are pooled


class Converted(NamedTuple):
    """A checkpoint in diffusers' names.

    Attributes:
        config: constructor arguments of diffusers' WanTransformer3DModel.
        weights: of that network.
        adapter: of the camera encoders, in the names of our network; empty if the checkpoint has none.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    adapter: dict[str, Tensor]


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file or a torch checkpoint; nothing but tensors is unpickled.

    Raises:
        ValueError: something else than weights by their names.
    """
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if not all(isinstance(value, Tensor) for value in state.values()):
        found = sorted(map(str, state))[:5]
        raise InvalidValue(
            f"{path} must hold weights by their names, found {found}; save the state_dict alone"
        )
    return check_weights(state, str(path))


def from_released(state: Mapping[str, Tensor], head_width: int = 128) -> Converted:
    """A released checkpoint as diffusers' network and our camera encoders.

    Args:
        state: its weights by name.
        head_width: channels of an attention head, which the weights do not show; 128 in every released Wan.

    Raises:
        ValueError: unknown or missing names, or wrong shapes; the message lists them.
    """
    blocks = max(1, _blocks(state))
    projected, sees = (any(f".{part}." in name for name in state) for part in (_PROJECTOR, "cam_encoder"))
    plain, cameras = _names(blocks), _camera_names(blocks) if sees else {}
    projectors = _projectors(blocks) if projected else []
    _check_names(state, [*plain, *cameras, *projectors], "Action Images checkpoint")
    config = _config(state, blocks, head_width)
    _check_shapes(state, config, plain, cameras, projectors)
    weights = {ours: state[theirs] for theirs, ours in plain.items()}
    for block in range(blocks if projected else 0):
        _fold(weights, f"blocks.{block}.attn1.to_out.0", state, f"blocks.{block}.{_PROJECTOR}")
    return Converted(config, weights, {ours: state[theirs] for theirs, ours in cameras.items()})


def to_released(weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_released`, with projectors that do nothing.

    Where there are no camera encoders, silent ones are written, since the released code asks for them.

    Raises:
        ValueError: another network, or an adapter that the released one has no place for.
    """
    blocks = max(1, _blocks(weights))
    names, cameras = _names(blocks), _camera_names(blocks)
    _check_names(weights, names.values(), "Wan text-to-video network of diffusers")
    state = {theirs: weights[ours] for theirs, ours in names.items()}
    lost = [name for name, value in adapter.items() if name not in cameras.values() and bool(value.any())]
    if lost:
        raise InvalidValue(
            f"the released network has no place for {', '.join(lost[:5])} ({len(lost)} in all); only models "
            "whose cameras come through camera encoders alone can be written so"
        )
    width = len(state["patch_embedding.bias"])
    silent = {"weight": (width, math.prod(POOLED_CAMERAS)), "bias": (width,)}
    for theirs, ours in cameras.items():
        shape = silent[theirs.rpartition(".")[2]]
        state[theirs] = adapter[ours] if ours in adapter else torch.zeros(shape)
    for name in _projectors(blocks):
        state[name] = torch.eye(width) if name.endswith("weight") else torch.zeros(width)
    return state


def _names(blocks: int) -> dict[str, str]:
    """Diffusers' names by theirs, of everything that Wan itself has."""
    found = {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in _OUTER.items() for part in _PARTS}
    found["head.modulation"] = "scale_shift_table"
    for block in range(blocks):
        inner = {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in _BLOCK.items() for part in _PARTS}
        inner = {**inner, **_NORMS, "modulation": "scale_shift_table"}
        found.update({f"blocks.{block}.{theirs}": f"blocks.{block}.{ours}" for theirs, ours in inner.items()})
    return found


def _camera_names(blocks: int) -> dict[str, str]:
    return {
        f"blocks.{block}.cam_encoder.2.{part}": f"camera_encoders.maps.{block}.{part}"
        for block in range(blocks)
        for part in _PARTS
    }


def _projectors(blocks: int) -> list[str]:
    return [f"blocks.{block}.{_PROJECTOR}.{part}" for block in range(blocks) for part in _PARTS]


def _blocks(state: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in state if re.match(r"blocks\.\d+\.", name)})


def _check_names(state: Mapping[str, Tensor], expected: Iterable[str], what: str) -> None:
    wanted = set(expected)
    for problem, names in (("unknown", state.keys() - wanted), ("missing", wanted - state.keys())):
        if names:
            raise InvalidValue(
                f"no {what}: {len(names)} {problem} names, such as {', '.join(sorted(names)[:5])}; give all "
                "weights of the denoiser, without a prefix, and nothing else"
            )


def _config(state: Mapping[str, Tensor], blocks: int, head_width: int) -> dict[str, Any]:
    """Constructor arguments of diffusers' network, from the shapes of its weights."""

    def size(name: str, dimensions: int) -> list[int]:
        if state[name].ndim != dimensions:
            raise InvalidValue(
                f"{name} has shape {list(state[name].shape)}, expected {dimensions} dimensions"
            )
        return list(state[name].shape)

    width, channels, *patch = size("patch_embedding.weight", 5)
    if width % head_width:
        raise InvalidValue(
            f"tokens of {width} channels are no whole number of heads of {head_width} channels"
        )
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": width // head_width,
        "attention_head_dim": head_width,
        "in_channels": channels,
        "out_channels": size("head.head.weight", 2)[0] // math.prod(patch),
        "text_dim": size("text_embedding.0.weight", 2)[1],
        "freq_dim": size("time_embedding.0.weight", 2)[1],
        "ffn_dim": size("blocks.0.ffn.0.weight", 2)[0],
        "num_layers": blocks,
    }


def _check_shapes(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    plain: Mapping[str, str],
    cameras: Iterable[str],
    projectors: Iterable[str],
) -> None:
    with torch.device("meta"):
        network = WanTransformer3DModel(**config).state_dict()
    width = network["proj_out.weight"].shape[1]
    wanted = {theirs: network[ours].shape for theirs, ours in plain.items()}
    for names, taken in ((projectors, width), (cameras, math.prod(POOLED_CAMERAS))):
        for name in names:
            wanted[name] = torch.Size([width, taken] if name.endswith("weight") else [width])
    wrong = [
        f"{name} is {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in wanted.items()
        if state[name].shape != shape
    ]
    if wrong:
        raise InvalidValue(f"{len(wrong)} weights of wrong shapes: {'; '.join(wrong[:5])}")


def _fold(weights: dict[str, Tensor], name: str, state: Mapping[str, Tensor], projector: str) -> None:
    """Multiply a linear map into the one before it: P (O x + o) + p = (P O) x + (P o + p), in float64."""
    outer, shift = (state[f"{projector}.{part}"].double() for part in _PARTS)
    weight, bias = (weights[f"{name}.{part}"] for part in _PARTS)
    weights[f"{name}.weight"] = (outer @ weight.double()).to(weight.dtype)
    weights[f"{name}.bias"] = (outer @ bias.double() + shift).to(bias.dtype)

"""Released weights that are read after sharding: every process reads its own part of the files only."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.modeling_utils import no_init_weights
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ai_wam.files.weights import check_finite
from backbones.weights.checkpoint_parts import require, weight_files
from backbones.weights.loading import check_complete, saved_config

_LATER: ContextVar[bool] = ContextVar("deferred_weights", default=False)
_FILES = ("config.json", "diffusion_pytorch_model.safetensors*", "diffusion_pytorch_model-*.safetensors")


@contextmanager
def deferred_weights() -> Iterator[None]:
    """Context in which backbones are built without their denoiser's released weights.

    `VideoBackbone.shard` reads them afterwards, each process its own part, or `VideoBackbone.materialize` all
    of them. Modules that are added to the released network are made at once.
    """
    token = _LATER.set(True)
    try:
        yield
    finally:
        _LATER.reset(token)


def weights_are_deferred() -> bool:
    """True inside `deferred_weights`."""
    return _LATER.get()


def empty_denoiser(kind: Any, pretrained: str, subfolder: str, dtype: torch.dtype) -> Any:
    """A released denoiser whose weights are on the meta device, in the types in which they will be read.

    Args:
        kind: its class, diffusers' own or one that extends it.
        pretrained: a local folder in diffusers' layout, or a hub id, whose files are fetched now.
        subfolder: of the denoiser in it.
        dtype: of the weights, except those that the class keeps in float32.

    Raises:
        FileNotFoundError: the part, or one of its files, is not there; the message says how to fetch it.
        ValueError: files that do not hold exactly the network's weights.
    """
    if not Path(pretrained).is_dir() and weight_files(pretrained, subfolder)[1]:
        snapshot_download(pretrained, allow_patterns=[f"{subfolder}/{name}" for name in _FILES])
    require(pretrained, subfolder, weights=True)
    with no_init_weights(), init_empty_weights(include_buffers=False):
        network = kind.from_config(saved_config(kind, pretrained, subfolder)).eval()
    kept = set(kind._keep_in_fp32_modules or ())
    wanted = network.state_dict(keep_vars=True)
    for name, value in wanted.items():
        if value.is_floating_point():
            place, _, leaf = name.rpartition(".")
            kind_of = dtype if kept.isdisjoint(name.split(".")) else torch.float32
            if isinstance(value, nn.Parameter):
                value.data = value.data.to(kind_of)
            else:  # a buffer that is saved, such as learned positions, is read as weights are
                network.get_submodule(place).register_buffer(leaf, value.to("meta", kind_of))
    with ExitStack() as stack:
        held = _opened(weight_files(pretrained, subfolder)[0], stack).keys()
    lacking, unknown = sorted(wanted.keys() - held), sorted(held - wanted.keys())
    check_complete(lacking, unknown, [], f"{subfolder!r} of {pretrained!r}")
    return network


def read_weights(network: nn.Module, files: list[Path], released: Callable[[str], str], device: str) -> None:
    """Fill what is on the meta device; of a sharded tensor, the part that this process holds.

    Args:
        network: a denoiser, sharded or not.
        files: that hold all of its released weights.
        released: the name in the files of one in the network.
        device: where tensors that are not sharded go; sharded ones go where their mesh is.
    """
    state: dict[str, Tensor] = {}
    with ExitStack() as stack:
        holders = _opened(files, stack)
        for name, empty in network.state_dict().items():
            if empty.is_meta:
                source = released(name)
                state[name] = _read(holders[source], source, empty, device)
    network.load_state_dict(state, strict=False, assign=True)


def _opened(files: list[Path], stack: ExitStack) -> Mapping[str, Any]:
    """By the name of every tensor, the open file that holds it."""
    contents = [stack.enter_context(safe_open(file, "pt")) for file in files]
    return {name: content for content in contents for name in content.keys()}  # noqa: SIM118  # no mapping


def _read(content: Any, name: str, empty: Tensor, device: str) -> Tensor:
    """One tensor as the network has it, or this process's part of it."""
    if not isinstance(empty, DTensor):
        whole = content.get_tensor(name)
        check_finite(whole, name, "the released weights")
        return whole.to(device, empty.dtype)
    mesh, placements = empty.device_mesh, empty.placements
    sizes, begins = compute_local_shape_and_global_offset(empty.shape, mesh, placements)
    if 0 in sizes:  # fewer rows than processes
        part = torch.empty(sizes)
    else:
        part = content.get_slice(name)[tuple(map(slice, begins, map(sum, zip(begins, sizes, strict=True))))]
    check_finite(part, name, "the released weights")
    part = part.to(mesh.device_type, empty.dtype)
    return DTensor.from_local(
        part, mesh, placements, run_check=False, shape=empty.shape, stride=empty.stride()
    )

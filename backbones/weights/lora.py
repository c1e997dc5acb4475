"""Low-rank adapters for any backbone, through peft."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from ai_wam.errors import InvalidValue, MissingPackage
from ai_wam.utils.number_checks import check_numbers

_PEFT = "adapter_model.safetensors"
_TRANSFORMERS = {
    "transformer": "pytorch_lora_weights.safetensors",
    "transformer_2": "pytorch_lora_weights_2.safetensors",
}


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv 2106.09685) beside frozen linear maps.

    Attributes:
        rank: of the adapters.
        alpha: adapters are scaled by alpha / rank.
        dropout: on the adapters' inputs.
        targets: last parts of the names of the maps; attention's four by default, in every family alike.
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        check_numbers("lora", at_least=1, rank=self.rank)
        check_numbers("lora", above=0, alpha=self.alpha)
        check_numbers("lora", at_least=0, at_most=1, dropout=self.dropout)


def add_lora(network: nn.Module, lora: LoRA, trained: Iterable[nn.Parameter] = ()) -> None:
    """Freeze a network and put adapters into it, in place: float32, without effect at step 0.

    Args:
        network: any network with linear maps.
        lora: size and places of the adapters.
        trained: parameters that are trained beside them.

    Raises:
        ImportError: peft is not installed.
        ValueError: no map has such a name.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise MissingPackage("lora needs peft; install it with: pip install 'ai-wam[lora]'") from error
    if not any(name.endswith(lora.targets) for name, _ in network.named_modules()):
        raise InvalidValue(
            f"lora: no module of {type(network).__name__} is called {' or '.join(lora.targets)}"
        )
    network.requires_grad_(False)
    inject_adapter_in_model(_config(lora), network)
    for parameter in trained:
        parameter.requires_grad_(True)
    for parameter in network.parameters():
        if parameter.requires_grad:  # rounding small steps away would undo the training
            parameter.data = parameter.data.to(torch.float32)


def start_lora(network: nn.Module) -> None:
    """Initialise adapters that peft put on the meta device, since the base maps are there."""
    from peft.tuners.lora import LoraLayer

    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            for name in layer.lora_A:
                if layer.lora_A[name].weight.is_meta:
                    layer.lora_A[name].to_empty(device="cpu")
                    layer.lora_B[name].to_empty(device="cpu")
                    layer.reset_lora_parameters(name, init_lora_weights=True)


def merge_lora(network: nn.Module) -> None:
    """Add the adapters into the maps beside them and remove them, in place; the output stays the same.

    The network becomes float32: a light fine-tune changes most half-precision weights by less than their last
    digit, so the sum rounded to half precision would lose it.
    """
    from peft.tuners.lora import LoraLayer

    network.float()
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, module.get_base_layer())


def write_lora(
    folder: Path, part: str, network: nn.Module, lora: LoRA, released: Mapping[str, str], base: str | None
) -> Path:
    """Write the low-rank adapters of a network alone, in float32.

    A transformer's become pytorch_lora_weights.safetensors (of a second one, pytorch_lora_weights_2), which
    `load_lora_weights` of diffusers' pipelines reads with rank and alpha. A UNet's, for which diffusers has
    no loader, become a folder that `peft.PeftModel.from_pretrained` reads.

    Args:
        folder: where the file or the folder is written.
        part: where a release keeps the network: "transformer", "transformer_2" or "unet".
        network: with adapters.
        lora: their size and places.
        released: names of the adapted maps in the released network, by those in ours.
        base: of what they are adapters; a local folder or hub id.

    Returns:
        What was written.

    Raises:
        ValueError: adapters of maps that the released network lacks.
    """
    from peft.tuners.lora import LoraLayer

    state: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            if name not in released:
                raise InvalidValue(f"lora: {name} has an adapter, but the released network has no such map")
            for side in ("lora_A", "lora_B"):
                weight = getattr(module, side)["default"].weight
                state[f"{released[name]}.{side}.weight"] = weight.detach().float().contiguous()
    if part == "unet":
        return _write_peft(folder / "unet_lora", state, lora, base)
    file = _TRANSFORMERS[part]
    metadata = {f"transformer.{key}": value for key, value in _config(lora).to_dict().items()}
    named = {f"transformer.{key}": value for key, value in state.items()}
    LoraBaseMixin.write_lora_layers(named, str(folder), True, file, None, True, metadata)
    return folder / file


def _write_peft(folder: Path, state: Mapping[str, Tensor], lora: LoRA, base: str | None) -> Path:
    """Adapters in peft's own format."""
    config = _config(lora)
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file({f"base_model.model.{key}": value for key, value in state.items()}, folder / _PEFT)
    return folder


def _config(lora: LoRA) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
    )

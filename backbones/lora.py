"""Low-rank adapters for any backbone, through peft."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ai_wam.errors import InvalidValue, MissingPackage
from ai_wam.numbers import check_numbers


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
    """Freeze a network and put adapters into it, in place; they start silent, in float32.

    Args:
        network: any network with linear maps.
        lora: size and places of the adapters.
        trained: parameters that are trained beside them.

    Raises:
        ImportError: peft is not installed.
        ValueError: no map has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingPackage("lora needs peft; install it with: pip install 'ai-wam[lora]'") from error
    if not any(name.endswith(lora.targets) for name, _ in network.named_modules()):
        raise InvalidValue(
            f"lora: no module of {type(network).__name__} is called {' or '.join(lora.targets)}"
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
    )
    network.requires_grad_(False)
    inject_adapter_in_model(config, network)
    for parameter in trained:
        parameter.requires_grad_(True)
    for parameter in network.parameters():
        if parameter.requires_grad:  # rounding small steps away would undo the training
            parameter.data = parameter.data.to(torch.float32)


def start_lora(network: nn.Module) -> None:
    """Start the adapters that peft has put on the meta device because the maps beside them are there."""
    from peft.tuners.lora import LoraLayer

    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            for name in layer.lora_A:
                if layer.lora_A[name].weight.is_meta:
                    layer.lora_A[name].to_empty(device="cpu")
                    layer.lora_B[name].to_empty(device="cpu")
                    layer.reset_lora_parameters(name, init_lora_weights=True)


def merge_lora(network: nn.Module) -> None:
    """Add the adapters into the maps beside them and remove them, in place; the output stays the same."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, module.get_base_layer())

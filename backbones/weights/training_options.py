"""How released weights are held and trained, which changes what a step costs and nothing it computes."""

from dataclasses import dataclass
from typing import Literal

from backbones.weights.lora import LoRA


@dataclass(frozen=True)
class Training:
    """How a denoiser is held and trained.

    Attributes:
        gradient_checkpointing: recompute blocks in the backward pass: less memory, a third more time.
        compile_blocks: compile the repeated blocks, one by one.
        lora: train low-rank adapters and the conditions' own weights only; released weights stay as they are.
        dtype: precision in which released weights are loaded.
    """

    gradient_checkpointing: bool = False
    compile_blocks: bool = False
    lora: LoRA | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

"""Weights that a module takes over are checked first, and refused in one sentence."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning import LightningModule

from ai_wam.files.weights import load_weights, refuse_broken


class CheckedWeights(LightningModule):
    """A LightningModule that refuses weights of other models, and weights that are not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(refuse_broken)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Take weights over.

        Raises:
            ValueError: those of another model.
        """
        load = partial(super().load_state_dict, strict=strict, assign=assign)
        return load_weights(load, state_dict, type(self).__name__)

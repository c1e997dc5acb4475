"""Releases of two networks of one size that share the noise path: one for high noise, one for low."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ai_wam.canvas import Canvas
from ai_wam.diffusion.noise_paths import NoisePath
from ai_wam.errors import InvalidValue
from backbones.conditions.prompts import Context
from backbones.weights.checkpoint_parts import find
from backbones.weights.denoiser_folder import model_index, trained_as

Expert = Literal["high", "low", "both"]
FOLDERS = ("transformer", "transformer_2")  # of the expert for high noise, and of that for low

_T = TypeVar("_T", Canvas, Context)
_Predict = Callable[[Any, Tensor, Tensor, Canvas, Context], Tensor]


class Experts(nn.Module):
    """Two networks, of which a row's noise level chooses one.

    Args:
        high: for noise levels from the boundary on.
        low: for those below.
        boundary: a noise level.
    """

    def __init__(self, high: Any, low: Any, boundary: float) -> None:
        super().__init__()
        self.high, self.low, self.boundary = high, low, boundary

    @property
    def config(self) -> Mapping[str, Any]:
        """Of either."""
        found: Mapping[str, Any] = self.high.config
        return found

    def predict(
        self,
        forward: _Predict,
        noisy: Float[Tensor, "b c f h w"],
        u: Float[Tensor, "b"],
        canvas: Canvas,
        context: Context,
    ) -> Float[Tensor, "b c f h w"]:
        """The prediction of every row's expert.

        Args:
            forward: one network's prediction of some rows.
            noisy: latents.
            u: noise levels.
            canvas: of the rows.
            context: of the rows; its memory, if any, is one by folder.
        """
        above = u >= self.boundary
        all_high, any_high = bool(above.all()), bool(above.any())
        if any_high and not all_high:
            rows = [above.nonzero()[:, 0], (~above).nonzero()[:, 0]]
            pairs = zip((self.high, self.low), rows, strict=True)
            parts = [forward(one, noisy[r], u[r], _rows(canvas, r), _rows(context, r)) for one, r in pairs]
            return torch.cat(parts)[torch.cat(rows).argsort()]
        chosen, idle = (self.high, self.low) if all_high else (self.low, self.high)
        if context.memory is not None:
            context = replace(context, memory=context.memory[FOLDERS[0 if all_high else 1]])
        return forward(chosen, noisy, u, canvas, context) + _zero_of(idle)


def _rows(value: _T, rows: Int[Tensor, "r"]) -> _T:
    """Some rows, without the memory of all of them."""
    tensors: dict[str, Any] = {
        name: part[rows] for name, part in vars(value).items() if isinstance(part, Tensor)
    }
    if isinstance(value, Context):
        tensors["memory"] = None
    return replace(value, **tensors)


def _zero_of(network: nn.Module) -> Float[Tensor, ""] | float:
    """0, with a gradient of 0 for a network that computed no row of a training batch.

    Processes that train together reduce gradients of every weight.
    """
    trained = [part for part in network.parameters() if part.requires_grad]
    if not torch.is_grad_enabled() or not trained:
        return 0.0
    return 0 * torch.stack([part.flatten()[0] for part in trained]).sum()


def boundary_of(pretrained: str | None, asked: float | None, folders: tuple[str, str]) -> float | None:
    """The noise level at which two experts meet; None for a release of one network.

    Args:
        pretrained: a local folder or hub id.
        asked: the setting, if any.
        folders: of the experts.

    Raises:
        ValueError: no noise level; two experts without one.
    """
    if asked is not None and not 0 < asked < 1:
        raise InvalidValue(f"boundary {asked} must lie between 0 and 1, such as 0.875")
    if asked is not None or pretrained is None:
        return asked
    index = model_index(pretrained)
    notes = (trained_as(pretrained, folder).get("boundary") for folder in folders)
    found: float | None = index.get("boundary_ratio") or next(filter(None, notes), None)
    second = (index.get(folders[1]) or [None])[0] is not None or find(pretrained, folders[1], "config.json")
    if second and found is None:
        raise InvalidValue(
            f"{pretrained!r} has two networks, {' and '.join(folders)}, but its model_index.json names no "
            "boundary_ratio; set boundary to the noise level from which on the first one computes"
        )
    return found


def chosen_expert(asked: Expert | None, boundary: float | None, pretrained: str | None) -> Expert | None:
    """Which experts are loaded; None for a release of one network.

    Raises:
        ValueError: asked for, and there are none.
    """
    if boundary is None and asked is not None:
        raise InvalidValue(
            f"expert: {asked} needs a release of two networks, but {pretrained!r} has one; leave it out, or "
            "set boundary, the noise level at which they meet"
        )
    return None if boundary is None else asked or "both"


def share_of(path: NoisePath, expert: Expert | None, boundary: float) -> NoisePath:
    """The path with training levels of one expert's share alone; as it is for both."""
    if expert == "both":
        return path
    within = (boundary, 1.0) if expert == "high" else (0.0, boundary)
    return replace(path, sampling=replace(path.sampling, within=within))

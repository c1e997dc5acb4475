"""Action decoders: from a generated canvas to poses, behind one interface."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ai_wam.action_images import ActionImageTokenizer, DecodedActions
from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, Kind
from ai_wam.types import ActionChunk, Observation
from tasks.decoding.action_head import ActionHead
from tasks.decoding.latent_reading import LatentReader

_LEAST_PRECISE = 1.5  # errors read from latents over those of decoded images


@dataclass(frozen=True)
class Generated:
    """What a plan generated: the input of decoders.

    Attributes:
        canvas: what it was generated on.
        latents: the packed canvas, clean.
        images: the action images of those frames that were decoded, in [-1, 1]; None if none were.
        cameras: that the images are drawn for, of the same frames.
        observation: the condition.
        tokenizer: how actions are drawn.
    """

    canvas: Canvas
    latents: Float[Tensor, "b c f lh lw"]
    images: Float[Tensor, "b v 3 t h w"] | None
    cameras: Cameras
    observation: Observation
    tokenizer: ActionImageTokenizer
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def geometric(self) -> DecodedActions:
        """Poses fitted to the images' blobs."""
        assert self.images is not None
        return self.tokenizer.decode((self.images + 1).div_(2), self.cameras, self.observation.view_mask)

    def drawn_by(self, reader: LatentReader) -> Float[Tensor, "b v 3 t _ _"]:
        """Small action images of the same frames, in [0, 1]; drawn once."""
        if "drawn" not in self._kept:
            self._kept["drawn"] = reader.images(self.action_latents)[:, :, :, : self.cameras.shape[2]]
        return self._kept["drawn"]

    @property
    def action_latents(self) -> Float[Tensor, "b v c tl lh lw"]:
        """Of all action segments, whole."""
        parts = zip(self.canvas.segments, self.canvas.unpack(self.latents.float()), strict=True)
        return torch.stack([part for segment, part in parts if segment.kind is Kind.ACTION], dim=1)


class ActionDecoder(ABC):
    """A way to decode poses.

    Attributes:
        kinds: segments that the video autoencoder decodes for it.
        reading: name of its poses in metrics; decoders of one name give the same poses.
        knows_std: whether it gives standard deviations.
    """

    kinds: tuple[Kind, ...]
    reading: str
    knows_std: bool

    @abstractmethod
    def read(self, generated: Generated) -> DecodedActions:
        """Poses of the frames that were decoded."""

    def pictures(self, generated: Generated) -> Float[Tensor, "b v 3 t h w"]:
        """Action images in [-1, 1], for display."""
        assert generated.images is not None
        return generated.images


class Geometric(ActionDecoder):
    """Poses fitted to the blobs of action images; other segments are decoded for display."""

    reading, knows_std = "geometric", True

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self.kinds = kinds

    def read(self, generated: Generated) -> DecodedActions:
        """The fit."""
        return generated.geometric


class Learned(ActionDecoder):
    """The action head's poses in the place of the geometric ones; every frame has one.

    It gives no standard deviations (NaN); the confidence is that of the geometric poses it corrects, 0 where
    those are invalid.
    """

    kinds, reading, knows_std = (Kind.ACTION,), "head", False

    def __init__(self, head: ActionHead) -> None:
        self._head = head

    def read(self, generated: Generated) -> DecodedActions:
        """The head's correction of the fit."""
        read, now = generated.geometric, generated.observation.action
        actions = self._head(generated.canvas, generated.latents, read, generated.cameras, now)
        unknown, valid = torch.full_like(read.position_std, torch.nan), torch.ones_like(read.valid)
        return replace(read, actions=actions, valid=valid, position_std=unknown, rotation_std=unknown)


class Latent(ActionDecoder):
    """Poses fitted to small images that a linear map draws from the latents, without the video autoencoder.

    If they are less than two thirds as precise as those of decoded images, the images are decoded, with a
    warning.

    Args:
        fit: fits the map to the model's codec; called once.
    """

    reading, knows_std = "latent", True

    def __init__(self, fit: Callable[[], LatentReader]) -> None:
        self._fit = fit

    @cached_property
    def reader(self) -> LatentReader | None:
        """The fitted map, or None if it is not precise enough."""
        reader = self._fit()
        worst = max(reader.position_ratio, reader.rotation_ratio)
        if worst <= _LEAST_PRECISE:
            return reader
        warnings.warn(
            f"decoder 'latent': errors read from this codec's latents are {worst:.1f} times those of decoded "
            f"action images, where {_LEAST_PRECISE} is allowed; the images are decoded, as by 'geometric'",
            stacklevel=2,
        )
        return None

    @property
    def kinds(self) -> tuple[Kind, ...]:  # type: ignore[override]  # known once the map is fitted
        """None, or the action segments if the map is not precise enough."""
        return (Kind.ACTION,) if self.reader is None else ()

    def read(self, generated: Generated) -> DecodedActions:
        """The fit to the small images."""
        if self.reader is None:
            return generated.geometric
        mask = generated.observation.view_mask
        return self.reader.read(generated.drawn_by(self.reader), generated.cameras, mask)

    def pictures(self, generated: Generated) -> Float[Tensor, "b v 3 t h w"]:
        """The small images, enlarged."""
        if self.reader is None:
            return super().pictures(generated)
        small = generated.drawn_by(self.reader)
        large = functional.interpolate(small.flatten(0, 2), self.reader.size, mode="bilinear")
        return large.unflatten(0, small.shape[:3]).mul(2).sub(1).clamp(-1, 1)


def decoders_of(
    head: ActionHead | None, fit_reader: Callable[[], LatentReader] | None = None
) -> dict[str, ActionDecoder]:
    """The decoders of a model, by their names in configurations.

    whole: everything that was generated is decoded, and poses are fitted to the action images.
    geometric: the same poses; only action segments go through the video autoencoder.
    head: the learned action head corrects them.
    latent: nothing goes through the video autoencoder; for models that act by it.

    Args:
        head: of the model.
        fit_reader: fits a map of latents to the model's codec, if "latent" is wanted.
    """
    rungs: dict[str, ActionDecoder] = {
        "whole": Geometric(tuple(Kind)),
        "geometric": Geometric((Kind.ACTION,)),
    }
    if head is not None:
        rungs["head"] = Learned(head)
    if fit_reader is not None:
        rungs["latent"] = Latent(fit_reader)
    return rungs


def readings(rungs: Mapping[str, ActionDecoder], generated: Generated) -> dict[str, DecodedActions]:
    """The poses of each decoder, once per `reading`."""
    return {rung.reading: rung.read(generated) for rung in rungs.values()}


@runtime_checkable  # for the checks of types at run time
class Acting(Protocol):
    """A model that acts by a decoder of choice."""

    tokenizer: ActionImageTokenizer

    def reset(self, episodes: Sequence[str]) -> None:
        """Named episodes are about to begin."""
        ...

    def act(self, observation: Observation, decoder: str) -> ActionChunk:
        """The actions that a decoder reads."""
        ...


class ActingBy:
    """A policy: a model with another decoder than its own."""

    def __init__(self, model: Acting, decoder: str) -> None:
        self.model, self.decoder, self.tokenizer = model, decoder, model.tokenizer

    def reset(self, episodes: Sequence[str]) -> None:
        """Episodes are about to begin."""
        self.model.reset(episodes)

    def predict_action(self, observation: Observation) -> ActionChunk:
        """The actions that the decoder reads."""
        return self.model.act(observation, self.decoder)

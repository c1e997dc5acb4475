"""Action decoders: from a generated canvas to poses, behind one interface."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ai_wam.action_images import ActionImageTokenizer, DecodedActions
from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, Kind
from ai_wam.types import ActionChunk, Observation
from tasks.decoding.action_head import ActionHead


@dataclass(frozen=True)
class Generated:
    """What a plan generated: the input of decoders.

    Attributes:
        canvas: what it was generated on.
        latents: the packed canvas, clean.
        images: the action images of those frames that were decoded, in [-1, 1].
        cameras: that the images are drawn for, of the same frames.
        observation: the condition.
        tokenizer: how actions are drawn.
    """

    canvas: Canvas
    latents: Float[Tensor, "b c f lh lw"]
    images: Float[Tensor, "b v 3 t h w"]
    cameras: Cameras
    observation: Observation
    tokenizer: ActionImageTokenizer

    @cached_property
    def geometric(self) -> DecodedActions:
        """Poses fitted to the images' blobs."""
        return self.tokenizer.decode((self.images + 1) / 2, self.cameras, self.observation.view_mask)


class ActionDecoder(ABC):
    """A way to decode poses.

    Attributes:
        kinds: segments of which it needs the pictures.
        reading: name of its poses in metrics; decoders of one name give the same poses.
        knows_std: whether it gives standard deviations.
    """

    kinds: tuple[Kind, ...]
    reading: str
    knows_std: bool

    @abstractmethod
    def read(self, generated: Generated) -> DecodedActions:
        """Poses of the frames that were decoded."""


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


def decoders_of(head: ActionHead | None) -> dict[str, ActionDecoder]:
    """The decoders of a model, by their names in configurations.

    whole: everything that was generated is decoded, and poses are fitted to the action images.
    geometric: the same poses; only action segments go through the video autoencoder.
    head: the learned action head corrects them.
    """
    rungs: dict[str, ActionDecoder] = {
        "whole": Geometric(tuple(Kind)),
        "geometric": Geometric((Kind.ACTION,)),
    }
    if head is not None:
        rungs["head"] = Learned(head)
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

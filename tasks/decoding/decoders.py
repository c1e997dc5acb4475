"""The ladder of decoders: how the poses of a generated canvas are read, behind one interface."""

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
    """What a plan generated, as decoders look at it.

    Attributes:
        canvas: what it was generated on.
        latents: the packed canvas, clean.
        images: the action images of those frames that were decoded, in [-1, 1].
        cameras: that the images are drawn for, of the same frames.
        observation: what was known.
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
    """One way to read poses.

    Attributes:
        kinds: segments that must be decoded to pictures for it.
        reading: the name of its poses in figures; decoders with one name read the same.
        knows_std: whether it knows how sure it is.
    """

    kinds: tuple[Kind, ...]
    reading: str
    knows_std: bool

    @abstractmethod
    def read(self, generated: Generated) -> DecodedActions:
        """Poses of the frames that were decoded."""


class Geometric(ActionDecoder):
    """Poses fitted to the blobs of action images; what else is decoded is for looking at."""

    reading, knows_std = "geometric", True

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self.kinds = kinds

    def read(self, generated: Generated) -> DecodedActions:
        """The fit."""
        return generated.geometric


class Learned(ActionDecoder):
    """The action head's poses in the place of the geometric ones; every frame has one.

    It does not know how sure it is: the standard deviations are NaN, and the confidence is that of the
    geometric decode it began with, 0 where that read nothing.
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


def ladder(head: ActionHead | None) -> dict[str, ActionDecoder]:
    """The decoders there are, by the name that configurations give them.

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
    """What the decoders read, each reading once."""
    return {rung.reading: rung.read(generated) for rung in rungs.values()}


@runtime_checkable  # for the checks of types at run time
class Acting(Protocol):
    """A model that can be told by which decoder to act."""

    tokenizer: ActionImageTokenizer

    def reset(self, episodes: Sequence[str]) -> None:
        """Named episodes are about to begin."""
        ...

    def act(self, observation: Observation, decoder: str) -> ActionChunk:
        """The actions that a decoder reads."""
        ...


class ActingBy:
    """A model as the policy that it is with another decoder."""

    def __init__(self, model: Acting, decoder: str) -> None:
        self.model, self.decoder, self.tokenizer = model, decoder, model.tokenizer

    def reset(self, episodes: Sequence[str]) -> None:
        """Tell the model that episodes begin."""
        self.model.reset(episodes)

    def predict_action(self, observation: Observation) -> ActionChunk:
        """The actions that the decoder reads."""
        return self.model.act(observation, self.decoder)

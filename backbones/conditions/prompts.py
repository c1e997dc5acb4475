"""Prompt encoders: the interface, and hashed words for models that learn language from scratch."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath
from ai_wam.utils.tensor_dataclass import TensorDataclass


@dataclass(frozen=True)
class Context(TensorDataclass):
    """Conditions of a denoiser besides the canvas.

    Attributes:
        tokens: prompt embeddings for cross-attention or joint attention; zeros after the end of the prompt.
        pooled: one vector per prompt.
        images: tokens of the observed pictures, view by view, for models conditioned on pictures.
        memory: what a backbone computes once per sample; see `VideoBackbone.prepare`.
    """

    tokens: Float[Tensor, "b l d"]
    pooled: Float[Tensor, "b d"]
    images: Float[Tensor, "b n e"] | None = None
    memory: Any = None

    def joined(self, other: "Context") -> "Context":
        """The rows of both."""
        images = None
        if self.images is not None and other.images is not None:
            images = torch.cat([self.images, other.images])
        return Context(torch.cat([self.tokens, other.tokens]), torch.cat([self.pooled, other.pooled]), images)


class PromptEncoder(nn.Module, ABC):
    """A frozen map from prompts to embeddings.

    Attributes:
        width: size d of an embedding.
        length: number l of tokens.
    """

    width: int
    length: int

    @abstractmethod
    def encode(self, prompts: Sequence[str], device: torch.device) -> Context:
        """Embeddings of a batch of prompts; the empty prompt is the null condition of guidance."""

    def check(self, prompts: Iterable[str]) -> None:
        """Refuse prompts that cannot be encoded, such as those of a data set before training on it.

        Raises:
            ValueError: a prompt beyond the encoder's limit.
        """
        return

    def drop(self) -> None:
        """Free weights that can be loaded again."""
        return

    def keep(self, folder: AnyPath, prompts: Sequence[str] = ()) -> bool:
        """Use embeddings kept in a folder, and add those of some prompts to it.

        Returns:
            False for an encoder whose embeddings cost nothing and are not kept.
        """
        return False


class HashedWords(PromptEncoder):
    """Every word is a fixed random vector drawn from its hash: nothing to download, equal on every machine.

    Words are lower-cased; punctuation is dropped.

    Args:
        width: size of an embedding.
        length: number of tokens; longer prompts are refused rather than cut.
    """

    def __init__(self, width: int = 64, length: int = 16) -> None:
        super().__init__()
        self.width, self.length = width, length
        self._vectors: dict[str, Tensor] = {}

    def encode(self, prompts: Sequence[str], device: torch.device) -> Context:
        """Word vectors in order, then zeros; pooled: their sum over the root of their number.

        Raises:
            ValueError: a prompt with more than `length` words.
        """
        tokens = torch.zeros(len(prompts), self.length, self.width)
        for row, prompt in enumerate(prompts):
            for position, word in enumerate(self._words(prompt)):
                tokens[row, position] = self._vector(word)
        count = tokens.abs().sum(-1).gt(0).sum(-1, keepdim=True).clamp(min=1)
        return Context(tokens.to(device), (tokens.sum(1) / count.sqrt()).to(device))

    def check(self, prompts: Iterable[str]) -> None:
        """Refuse prompts with more than `length` words."""
        for prompt in prompts:
            self._words(prompt)

    def _words(self, prompt: str) -> list[str]:
        words = "".join(c if c.isalnum() else " " for c in prompt.lower()).split()
        if len(words) > self.length:
            raise InvalidValue(
                f"HashedWords: {prompt!r} has {len(words)} words, limit {self.length}; raise `length`"
            )
        return words

    def _vector(self, word: str) -> Tensor:
        if word not in self._vectors:
            seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            self._vectors[word] = torch.from_numpy(
                np.random.default_rng(seed).standard_normal(self.width)
            ).float()
        return self._vectors[word]

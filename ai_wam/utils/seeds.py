"""Random numbers that depend on their name alone, never on what was drawn before."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def stable_seed(*names: object) -> int:
    """A 63-bit hash of the names' texts, equal on every machine and in every run (unlike `hash`)."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def named_generator(*names: object) -> torch.Generator:
    """A CPU generator seeded by names: the same draws whatever the device, worker or batch composition."""
    return torch.Generator().manual_seed(stable_seed(*names))


def episode_noise(
    seed: int, episodes: Sequence[str], seconds: Sequence[float], shape: Sequence[int]
) -> Float[Tensor, "b *n"]:
    """Normal noise, a row per episode, which depends on that episode and its time alone and not on the batch.

    Args:
        seed: of the model.
        episodes: names.
        seconds: since each began.
        shape: of a row.
    """
    rows = zip(episodes, seconds, strict=True)
    return torch.stack(
        [torch.randn(*shape, generator=named_generator(seed, name, f"{time:.3f}")) for name, time in rows]
    )

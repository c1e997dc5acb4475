"""Random numbers that depend on their name alone, never on what was drawn before."""

import hashlib

import torch


def stable_seed(*names: object) -> int:
    """A 63-bit hash of the names' texts, equal on every machine and in every run (unlike `hash`)."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def named_generator(*names: object) -> torch.Generator:
    """A CPU generator seeded by names: the same draws whatever the device, worker or batch composition."""
    return torch.Generator().manual_seed(stable_seed(*names))

"""The T5 family of released checkpoints as prompt encoders: UMT5 for Wan, T5 v1.1 for CogVideoX."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from backbones.loading import load_part
from backbones.prompts import Context, PromptEncoder


class T5Prompts(PromptEncoder):
    """A frozen T5 encoder, loaded at the first prompt; embeddings are kept, so each prompt is encoded once.

    Args:
        pretrained: local folder or hub id in diffusers' layout.
        encoder: the class in transformers.
        length: number of tokens.
        padding: what follows the prompt's end: "zeros" (Wan), or "states" of padding tokens (CogVideoX).
        dtype: the weights' precision.
    """

    def __init__(
        self,
        pretrained: str,
        encoder: Literal["UMT5EncoderModel", "T5EncoderModel"],
        length: int,
        padding: Literal["zeros", "states"],
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
    ) -> None:
        super().__init__()
        from transformers import AutoConfig

        self.pretrained, self.encoder, self.length, self.padding = pretrained, encoder, length, padding
        self.dtype = getattr(torch, dtype)
        self.width = load_part(AutoConfig, pretrained, "text_encoder").d_model
        # In a tuple, so that no checkpoint or optimizer sees the encoder.
        self._loaded: tuple[Any, Any] | None = None
        self._known: dict[str, tuple[Tensor, int]] = {}

    def encode(self, prompts: Sequence[str], device: torch.device) -> Context:
        """Last hidden states; pooled: their mean over the prompt's own tokens."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._known:
                self._known[prompt] = self._embed(prompt, device)
        tokens = torch.stack([self._known[prompt][0] for prompt in prompts])
        pooled = [states[:count].mean(dim=0) for states, count in (self._known[prompt] for prompt in prompts)]
        return Context(tokens.to(device), torch.stack(pooled).to(device))

    @torch.no_grad()
    def _embed(self, prompt: str, device: torch.device) -> tuple[Tensor, int]:
        """States "l d" of one prompt, on the CPU, and how many of them are its own."""
        tokenizer, encoder = self._load(device)
        text = tokenizer(
            " ".join(prompt.split()), padding="max_length", max_length=self.length, return_tensors="pt"
        ).to(device)
        count = int(text.attention_mask.sum())
        if count > self.length:
            raise ValueError(
                f"the prompt {prompt[:60]!r}... has {count} tokens, limit {self.length}; shorten it"
            )
        if self.padding == "states":
            return encoder(text.input_ids).last_hidden_state[0].float().cpu(), count
        states = encoder(text.input_ids, text.attention_mask).last_hidden_state[0, :count].float().cpu()
        return functional.pad(states, (0, 0, 0, self.length - count)), count

    def _load(self, device: torch.device) -> tuple[Any, Any]:
        if self._loaded is None:
            import transformers

            tokenizer = load_part(transformers.AutoTokenizer, self.pretrained, "tokenizer")
            encoder = load_part(
                getattr(transformers, self.encoder), self.pretrained, "text_encoder", self.dtype
            )
            self._loaded = (tokenizer, encoder.eval())
        self._loaded[1].to(device)
        return self._loaded

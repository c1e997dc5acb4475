"""The T5 family of released checkpoints as prompt encoders: UMT5 for Wan, T5 v1.1 for CogVideoX."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath, as_path, atomic_file
from backbones.conditions.prompts import Context, PromptEncoder
from backbones.weights.checkpoint_parts import require, together
from backbones.weights.loading import load_part


class T5Prompts(PromptEncoder):
    """A frozen T5 encoder, loaded at the first prompt; embeddings are kept, so each prompt is encoded once.

    Args:
        pretrained: local folder or hub id in diffusers' layout.
        encoder: the class in transformers.
        length: number of tokens.
        padding: what follows the prompt's end: "zeros" (Wan), or "states" of padding tokens (CogVideoX).
        dtype: the weights' precision.
        device: where the encoder runs: beside the "model", or on the "cpu", where it takes seconds a prompt
            and no memory of the accelerator.
        cache: folder that keeps embeddings from one run to the next; with all prompts in it the encoder is
            never loaded.
    """

    def __init__(
        self,
        pretrained: str,
        encoder: Literal["UMT5EncoderModel", "T5EncoderModel"],
        length: int,
        padding: Literal["zeros", "states"],
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        device: Literal["model", "cpu"] = "model",
        cache: str | None = None,
    ) -> None:
        super().__init__()
        from transformers import AutoConfig

        self.pretrained, self.encoder, self.length, self.padding = pretrained, encoder, length, padding
        self.dtype, self.device, self.cache = getattr(torch, dtype), device, cache
        needed: list[Callable[[], Any]] = [lambda: load_part(AutoConfig, pretrained, "text_encoder")]
        if cache is None:  # which may hold all prompts
            needed += [
                lambda: require(pretrained, "text_encoder", weights=True),
                lambda: require(pretrained, "tokenizer", weights=False, file="tokenizer_config.json"),
            ]
        self.width = together(*needed)[0].d_model
        self._tokenizer: Any = None
        # In a tuple, so that no checkpoint or optimizer sees the encoder.
        self._loaded: tuple[Any] | None = None
        self._known: dict[str, tuple[Tensor, int]] = {}
        # Looked for in all, kept in the first.
        self._folders: list[AnyPath] = [] if cache is None else [as_path(cache)]

    def encode(self, prompts: Sequence[str], device: torch.device) -> Context:
        """Last hidden states; pooled: their mean over the prompt's own tokens."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._known:
                self._known[prompt] = self._recall(prompt, device)
        tokens = torch.stack([self._known[prompt][0] for prompt in prompts])
        pooled = [states[:count].mean(dim=0) for states, count in (self._known[prompt] for prompt in prompts)]
        return Context(tokens.to(device), torch.stack(pooled).to(device))

    def check(self, prompts: Iterable[str]) -> None:
        """Refuse prompts with more than `length` tokens; the tokenizer alone is loaded."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._known and not any(
                (folder / self._name(prompt)).is_file() for folder in self._folders
            ):
                self._tokens(prompt)

    def drop(self) -> None:
        """Free the encoder; known prompts stay known, and a new one loads it again."""
        self._loaded = None

    def keep(self, folder: AnyPath, prompts: Sequence[str] = ()) -> bool:
        """Look there too, beside the folders known so far; `prompts` are encoded and put there.

        The encoder is freed when all are there.
        """
        self.check(prompts)
        self._folders.append(folder)
        for prompt in prompts:
            if not (file := folder / self._name(prompt)).is_file():
                states, count = self._recall(prompt, torch.device("cpu"))
                self._save(file, states, count)
        self.drop()
        return True

    def _recall(self, prompt: str, device: torch.device) -> tuple[Tensor, int]:
        """As `_embed`, from a folder where one has the prompt; what follows the last state is not stored."""
        name = self._name(prompt)
        for folder in self._folders:
            if (folder / name).is_file():
                kept = load((folder / name).read_bytes())
                states, count = kept["states"].float(), int(kept["count"])
                return functional.pad(states, (0, 0, 0, self.length - len(states))), count
        states, count = self._embed(prompt, torch.device("cpu") if self.device == "cpu" else device)
        if self._folders:
            self._save(self._folders[0] / name, states, count)
        return states, count

    def _save(self, file: AnyPath, states: Tensor, count: int) -> None:
        end = int(states.any(dim=1).nonzero().max()) + 1
        with atomic_file(file) as stream:
            stream.write(save({"states": states[:end].to(self.dtype), "count": torch.tensor(count)}))

    def _name(self, prompt: str) -> str:
        """Of a file: everything that decides an embedding."""
        parts = (
            type(self).__name__,
            self.pretrained,
            self.encoder,
            self.length,
            self.padding,
            self.dtype,
            prompt,
        )
        name = hashlib.blake2b(json.dumps([str(part) for part in parts]).encode(), digest_size=16).hexdigest()
        return f"{name}.safetensors"

    @torch.no_grad()
    def _embed(self, prompt: str, device: torch.device) -> tuple[Tensor, int]:
        """States "l d" of one prompt, on the CPU, and how many of them are its own."""
        text = self._tokens(prompt).to(device)
        encoder, count = self._load(device), int(text.attention_mask.sum())
        if self.padding == "states":
            return encoder(text.input_ids).last_hidden_state[0].float().cpu(), count
        states = encoder(text.input_ids, text.attention_mask).last_hidden_state[0, :count].float().cpu()
        return functional.pad(states, (0, 0, 0, self.length - count)), count

    def _tokens(self, prompt: str) -> Any:
        """Tokens and mask of one prompt, padded."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = load_part(AutoTokenizer, self.pretrained, "tokenizer")
        text = self._tokenizer(
            " ".join(prompt.split()), padding="max_length", max_length=self.length, return_tensors="pt"
        )
        count = int(text.attention_mask.sum())
        if count > self.length:
            raise InvalidValue(
                f"the prompt {prompt[:60]!r}... has {count} tokens, limit {self.length}; shorten it"
            )
        return text

    def _load(self, device: torch.device) -> Any:
        if self._loaded is None:
            import transformers

            kind = getattr(transformers, self.encoder)
            self._loaded = (load_part(kind, self.pretrained, "text_encoder", self.dtype).eval(),)
        return self._loaded[0].to(device)

"""Wan's transformer for canvases: a mask of given tokens and cached keys and values in one forward."""

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from backbones.conditions.block_conditions import CameraEncoders
from backbones.networks.wan_attention import AttentionInputs


class WanNetwork(WanTransformer3DModel):
    """diffusers' Wan with a forward that can treat given tokens as clean, and compute some tokens only.

    Attributes:
        camera_encoders: maps of camera latents; None if the rays are the only camera condition.
    """

    camera_encoders: CameraEncoders | None

    ROWS = 8  # of each of the two times

    def forward(
        self,
        latents: Float[Tensor, "b e f h w"],
        time: Float[Tensor, "b *two"],
        text: Float[Tensor, "b l d"],
        images: Float[Tensor, "b m k"] | None = None,
        clean: Bool[Tensor, "b n"] | None = None,
        mask: Bool[Tensor, "b 1 q k"] | None = None,
        chosen: Int[Tensor, "q"] | None = None,
        past: list[tuple[Tensor, Tensor]] | None = None,
        record: list[tuple[Tensor, Tensor]] | None = None,
        offsets: Float[Tensor, "blocks b f width"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """The network's prediction.

        Args:
            latents: input channels of the widened projection.
            time: 1000 times the noise level, per row; with `clean`, of noisy tokens and of clean ones.
            text: prompt embeddings.
            images: image embeddings of image-to-video networks.
            clean: which tokens have the second time.
            mask: which keys a query may look at.
            chosen: tokens to compute; the prediction is zero elsewhere.
            past: keys and values of the other tokens, block by block.
            record: receives keys and values of the computed tokens, block by block.
            offsets: what is added to the input of self-attention, block by block, frame by frame.
        """
        cos, sin = self.rope(latents)
        tokens = self.patch_embedding(latents)
        grid = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2).contiguous()
        if chosen is not None:
            tokens, cos, sin = tokens[:, chosen], cos[:, chosen], sin[:, chosen]
            clean = None if clean is None else clean[:, chosen]
        embedded, modulation = self._timed(time, clean)
        text = self.condition_embedder.text_embedder(text)
        if images is not None:
            text = torch.cat([self.condition_embedder.image_embedder(images), text], dim=1)
        for index, block in enumerate(self.blocks):
            offset = None if offsets is None else offsets[index].repeat_interleave(grid[1] * grid[2], dim=1)
            offset = offset if offset is None or chosen is None else offset[:, chosen]
            recorded: list[tuple[Tensor, Tensor]] | None = None if record is None else []
            guide = AttentionInputs(cos, sin, mask, None if past is None else past[index], recorded, offset)
            arguments = (tokens, text, modulation, guide)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, *arguments)
            else:
                tokens = block(*arguments)
            if record is not None and recorded is not None:
                record += recorded
        table = self.scale_shift_table.to(embedded.device)
        shift, scale = (table + embedded.unsqueeze(-2)).chunk(2, dim=-2)
        if clean is not None:
            shift, scale = shift.squeeze(-2), scale.squeeze(-2)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        return self._unpatched(self.proj_out(tokens), grid, chosen)

    def _timed(
        self, time: Float[Tensor, "b *two"], clean: Bool[Tensor, "b n"] | None
    ) -> tuple[Float[Tensor, "b *n d"], Float[Tensor, "b *n 6 d"]]:
        """Embedded time and the blocks' modulation: of the two times of a row, then expanded to every token.

        Each is embedded several times over, or matrix products would take ways of their own for so few rows
        and be a last bit off those of all tokens.
        """
        embedder = self.condition_embedder
        if clean is not None:
            time = time.repeat_interleave(self.ROWS, dim=1)
        waves = embedder.timesteps_proj(time.flatten()).unflatten(0, time.shape)
        embedded = embedder.time_embedder(waves).to(embedder.time_proj.weight.dtype)
        modulation = embedder.time_proj(embedder.act_fn(embedded)).unflatten(-1, (6, -1))
        if clean is None:
            return embedded, modulation
        return (
            torch.where(clean[:, :, None], embedded[:, -1:], embedded[:, :1]),
            torch.where(clean[:, :, None, None], modulation[:, -1:], modulation[:, :1]),
        )

    def _unpatched(
        self, tokens: Float[Tensor, "b q d"], grid: torch.Size, chosen: Int[Tensor, "q"] | None
    ) -> Float[Tensor, "b c f h w"]:
        """Tokens as latents, zero where none was computed."""
        if chosen is not None:
            whole = tokens.new_zeros(len(tokens), grid.numel(), tokens.shape[2])
            whole[:, chosen] = tokens
            tokens = whole
        f, h, w = grid
        _, p, q = self.config.patch_size
        return rearrange(
            tokens, "b (f h w) (p q c) -> b c f (h p) (w q)", f=f, h=h, w=w, p=p, q=q
        ).contiguous()

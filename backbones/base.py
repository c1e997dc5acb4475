"""The interface of a video backbone: its construction and sharding; `loss_and_sampling` computes with it."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, condition_channels
from ai_wam.diffusion.noise_paths import NoisePath
from ai_wam.errors import InvalidValue
from ai_wam.types import LatentSpec
from ai_wam.utils.class_paths import class_path
from backbones.codecs.base import LatentCodec
from backbones.conditions.block_conditions import BlockConditions, ConditionedBlocks, condition_blocks
from backbones.conditions.image_encoders import ImageEncoder
from backbones.conditions.input_adapter import ADDED, adapt_input, conditioned
from backbones.conditions.prompts import Context, PromptEncoder
from backbones.loss_and_sampling import CanvasDiffusion, Prediction
from backbones.networks.fp32_modules import fp32_modules, keep_in_fp32
from backbones.weights.checkpoint_parts import weight_files
from backbones.weights.denoiser_folder import (
    base_model,
    check_parts,
    check_trained_as,
    load_adapter,
    released_name,
    split_weights,
)
from backbones.weights.loading import load_part, new_denoiser, one_source, or_released, survey
from backbones.weights.lora import add_lora, start_lora
from backbones.weights.sharded_loading import empty_denoiser, read_weights, weights_are_deferred
from backbones.weights.state_dict_hooks import allow_missing_released, leave_out_released
from backbones.weights.training_options import Training

Time = Literal["shared", "per_frame", "per_token"]


class VideoBackbone(CanvasDiffusion):
    """A latent video diffusion model that denoises a canvas.

    A subclass names its network and implements a few hooks and `predict`; everything else is shared. The
    hooks are called in the order in which they are defined here.

    Attributes:
        Denoiser: the network's class in diffusers.
        folder: where a released checkpoint keeps it.
        input_projection: dotted name of the projection that takes the latents in.
        blocks: dotted names of the lists of repeated blocks, which are sharded and compiled one by one.
        times: supported time modes; the first one is that of the released model.
        fp32_parts: parts of names of modules that compute without autocast, besides those whose weights
            diffusers keeps in float32.

    Args:
        pretrained: local folder or hub id of a released checkpoint in diffusers' layout, or of one that
            `ai-wam export-checkpoint` or `convert-checkpoint` wrote.
        architecture: constructor arguments of a denoiser to be built from scratch instead; whatever follows
            from codec, prompts and images is filled in.
        codec: video autoencoder; the released one if left out.
        prompts: prompt encoder; the released one if left out.
        images: image encoder; the released one, if the model has one and this is left out.
        path: noise path; the released model's if left out.
        prediction: "native" reads the network's output as the path's own target; "clean" as the clean
            latents, which small models trained from scratch learn faster; "change" as the
            difference of the clean latents from those of a scene in which nothing moves, so that no width is
            spent on the background. The codec encodes that scene in every step, which is cheap for
            `PatchCodec` alone.
        time: whether given frames or tokens have their own diffusion time, 0, or all share one; as released
            if left out.
        rays: whether the rays of the views are a condition at every position. Without them a model is blind
            to calibrations, which its action images are drawn and read by all the same.
        known_observation: whether the clean observation latent of the view is a condition at every position:
            that of the same time where the plan gives the whole video, else that of the first frame; not
            for image-to-video models, which have the first frame natively.
        known_action: the same of the action images, up to the last one that the plan gives; so that a
            picture need not look for the actions that it follows.
        prompt_modulation: whether the pooled prompt also scales and shifts the input tokens.
        block_rank: rank of the maps by which every block is conditioned on the canvas again; 0 leaves them
            out.
        training: how weights are held and trained: precision, low-rank adapters, memory against time.

    Raises:
        ValueError: neither or both of `pretrained` and `architecture`, a missing part, or parts that do not
            fit one another.
        FileNotFoundError: an incomplete checkpoint.
    """

    Denoiser: ClassVar[Any]
    folder: str = "transformer"
    input_projection: ClassVar[str]
    blocks: ClassVar[tuple[str, ...]]
    times: ClassVar[tuple[Time, ...]] = ("shared",)
    fp32_parts: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        codec: LatentCodec | None = None,
        prompts: PromptEncoder | None = None,
        images: ImageEncoder | None = None,
        path: NoisePath | None = None,
        prediction: Prediction = "native",
        time: Time | None = None,
        rays: bool = True,
        known_observation: bool = True,
        known_action: bool = False,
        prompt_modulation: bool = False,
        block_rank: int = 0,
        training: Training = Training(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        one_source(self.Denoiser, pretrained, architecture)
        self.pretrained, self.base_model = pretrained, base_model(pretrained, self.folder)
        self.path, self.prediction = path or self.released_path(), prediction
        config, self.codec, self.prompts, self.images = survey(self, codec, prompts, images)
        if pretrained is not None:
            check_parts(pretrained, self.parts, type(self).__name__)
        if config is None:
            size = self.channels(architecture or {})
            made = [new_denoiser(self.Denoiser, architecture, size) for _ in self.folders]
            config = made[0].config
        self.spec = replace(
            self.latent_spec(config),
            time=self._time(time),
            rays=rays,
            known_observation=self._context(known_observation, config),
            known_action=known_action,
        )
        if prediction == "change" and self.takes_image(config):
            raise InvalidValue(
                f"{type(self).__name__}: this network has the first frame as a condition natively, so it "
                "need not predict the change against it; set prediction: native or clean"
            )
        self.weights_dtype = torch.float32
        if pretrained is not None:
            self.codec = or_released(codec, "codec", self.base_model, self.released_codec)
            self.weights_dtype = getattr(torch, training.dtype)
            load = empty_denoiser if weights_are_deferred() else load_part
            made = [load(self.Denoiser, pretrained, name, self.weights_dtype) for name in self.folders]
        self.denoiser = made[0] if len(made) == 1 else self.combined(made)
        self.released_names = frozenset(made[0].state_dict())
        self.prompt_modulation, self.lora = prompt_modulation, training.lora
        for folder, network in self.networks().items():
            self._adapt(network, block_rank)
            if pretrained is not None:
                check_trained_as(pretrained, folder, self.trained_as())
                load_adapter(pretrained, folder, network, self.input_projection, self.released_names)
            if self.lora is not None:
                add_lora(network, self.lora, self._added(network))
                if weights_are_deferred():
                    start_lora(network)
            if training.gradient_checkpointing:
                network.enable_gradient_checkpointing()
        if training.compile_blocks:
            for block in self.fsdp_units():
                block.compile()
        for part in self._frozen():
            part.requires_grad_(False).eval()
        self.register_state_dict_post_hook(leave_out_released)
        self.register_load_state_dict_post_hook(allow_missing_released)

    # ------------------------------------------------------------------ what a subclass writes

    @abstractmethod
    def released_codec(self, pretrained: str) -> LatentCodec:
        """The video autoencoder of a released checkpoint."""

    @abstractmethod
    def released_prompts(self, pretrained: str) -> PromptEncoder:
        """The prompt encoder of a released checkpoint, loaded when first needed."""

    def released_images(self, pretrained: str, config: Mapping[str, Any]) -> ImageEncoder | None:
        """The image encoder of a released checkpoint, loaded when first needed; None if it has none."""
        return None

    @abstractmethod
    def released_path(self) -> NoisePath:
        """The noise path of the released model."""

    @abstractmethod
    def channels(self, architecture: Mapping[str, Any]) -> dict[str, int]:
        """Arguments of the denoiser that follow from codec, prompts and images: channels and widths."""

    @abstractmethod
    def latent_spec(self, config: Mapping[str, Any]) -> LatentSpec:
        """The latent spec of a denoiser of this configuration, before any weight is read.

        Raises:
            ValueError: a configuration that this backbone cannot use with its codec.
        """

    def takes_image(self, config: Mapping[str, Any]) -> bool:
        """Whether a denoiser of this configuration has a picture as a condition beside the latents."""
        return False

    def extras(self, config: Mapping[str, Any]) -> dict[str, nn.Module | None]:
        """Modules by name that are added to the released denoiser, without effect at step 0, or None."""
        return {}

    def trained_as(self) -> dict[str, Any]:
        """Options that a trained network must be used with; kept with its weights, which do not show them."""
        return {
            "path": class_path(self.path),
            "prediction": self.prediction,
            "time": self.spec.time,
        }

    def encode_cameras(
        self, cameras: Cameras, size: tuple[int, int], frames: int
    ) -> Float[Tensor, "b v e tl lh lw"] | None:
        """Camera latents, for networks conditioned on more than the rays of the canvas; else None.

        Args:
            cameras: leading dimensions "b v t"; t = 1 stands for cameras that do not move.
            size: height and width of the video in pixels.
            frames: video frames of the clip.
        """
        return None

    def encode_still(
        self, first: Float[Tensor, "b v 3 1 h w"], latents: Float[Tensor, "b v c 1 lh lw"], frames: int
    ) -> Float[Tensor, "b v c tl lh lw"] | None:
        """The picture condition of clips by their first frame alone; None for networks without one.

        Args:
            first: the first frame in [-1, 1].
            latents: the same, encoded.
            frames: video frames of the clip.
        """
        return None

    def combined(self, networks: Sequence[Any]) -> Any:
        """One module of several networks, for releases that have more than one of a kind.

        It has the first one's `config`, and `networks` finds them in it again.
        """
        raise NotImplementedError(f"{type(self).__name__} is one network, got {len(networks)}")

    # ------------------------------------------------------------------ what is written once

    @property
    def folders(self) -> tuple[str, ...]:
        """Subfolders of the loaded networks in a checkpoint."""
        return (self.folder,)

    @property
    def parts(self) -> set[str]:
        """Parts of a release that are used."""
        images = () if self.images is None else ("image_encoder",)
        return {*self.folders, "vae", "text_encoder", *images}

    def networks(self) -> dict[str, Any]:
        """The loaded networks, all of one size, by their subfolders in a checkpoint."""
        return {self.folder: self.denoiser}

    def train(self, mode: bool = True) -> "VideoBackbone":
        """Switch the denoiser's mode; the frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def fsdp_units(self) -> list[nn.Module]:
        """The repeated blocks, which are sharded (FSDP2) and compiled one by one."""
        networks = self.networks().values()
        return [
            block for one in networks for name in self.blocks for block in one.get_submodule(name).children()
        ]

    def shard(self, mesh: DeviceMesh) -> None:
        """Shard the denoiser over a mesh (FSDP2): every block a unit, the rest one more.

        Weights that wait to be read (`backbones.weights.sharded_loading.deferred_weights`) are read now, by
        each process its own.
        """
        if self.weights_dtype != torch.float32 and self.lora is None:
            raise InvalidValue(
                f"{type(self).__name__}: weights of two precisions cannot be sharded together, and dtype "
                f"{self.weights_dtype} keeps some in float32; set training.dtype: float32, or train with lora"
            )
        for block in self.fsdp_units():
            fully_shard(block, mesh=mesh)
        fully_shard(self.denoiser, mesh=mesh)
        self.materialize(mesh.device_type)

    def materialize(self, device: str = "cpu") -> None:
        """Read released weights whose reading was deferred; tensors that are not sharded go to `device`."""
        waiting = any(value.is_meta for value in self.denoiser.state_dict().values())
        if self.pretrained is not None and waiting:
            released = partial(released_name, projection=self.input_projection)
            for folder, network in self.networks().items():
                read_weights(network, weight_files(self.pretrained, folder)[0], released, device)

    def fp32_modules(self, network: Any = None) -> dict[str, nn.Module]:
        """Modules that compute in float32 whatever the autocast, by name: time, and added conditions.

        Args:
            network: of which; the denoiser, if left out.
        """
        kept = self.Denoiser._keep_in_fp32_modules or ()
        return fp32_modules(self.denoiser if network is None else network, {*kept, *self.fp32_parts, *ADDED})

    def unsaved(self) -> set[str]:
        """Names of tensors left out of checkpoints: frozen ones that the released checkpoint has."""
        if self.pretrained is None:
            return set()
        tensors = [*self.named_parameters(), *self.named_buffers()]
        names = {name for name, _ in tensors if not name.startswith("denoiser.")}
        if self.lora is not None:
            frozen = (name for name, value in tensors if not value.requires_grad)
            names.update(frozen)
        return names

    def _added(self, network: Any) -> list[nn.Parameter]:
        """Parameters that the released network does not have."""
        added = split_weights(network, self.input_projection, self.released_names)[1]
        return [parameter for name, parameter in network.named_parameters() if name in added]

    def _frozen(self) -> list[nn.Module]:
        return [part for part in (self.codec, self.prompts, self.images) if part is not None]

    def _time(self, asked: Time | None) -> Time:
        if asked is not None and asked not in self.times:
            raise InvalidValue(
                f"{type(self).__name__}: time {asked!r} is not known to this network; choose one of "
                f"{', '.join(self.times)}"
            )
        return asked or self.times[0]

    def _context(self, asked: bool, config: Mapping[str, Any]) -> bool:
        if asked and self.takes_image(config):
            raise InvalidValue(
                f"{type(self).__name__}: this network has the first frame as a condition natively, so the "
                "canvas condition must not repeat it; set known_observation: false"
            )
        return asked

    def _adapt(self, network: Any, rank: int) -> None:
        """Add our conditions to a released network, in place; none has an effect at step 0."""
        pooled = self.prompts.width if self.prompt_modulation else 0
        volume = self.spec.patch**2 * self.spec.patch_time
        channels = condition_channels(self.spec)
        adapt_input(network, self.input_projection, channels, pooled, volume)
        for name, module in self.extras(network.config).items():
            setattr(network, name, module)
        if rank:
            if len(self.blocks) != 1:
                raise InvalidValue(
                    f"{type(self).__name__}: block_rank {rank} needs blocks of one size, but this network's "
                    f"({', '.join(self.blocks)}) work at several; leave block_rank at 0"
                )
            patch = (self.spec.patch_time, self.spec.patch, self.spec.patch)
            width = network.get_submodule(self.input_projection).width
            blocks = network.get_submodule(self.blocks[0])
            network.block_conditions = BlockConditions(channels, patch, rank, width, len(blocks))
            condition_blocks(blocks, network.block_conditions)
        for module in self.fp32_modules(network).values():
            keep_in_fp32(module)

    def network_input(
        self,
        noisy: Float[Tensor, "b c f h w"],
        canvas: Canvas,
        context: Context,
        native: Float[Tensor, "b n f h w"] | None = None,
        chosen: Int[Tensor, "q"] | None = None,
        network: Any = None,
    ) -> Float[Tensor, "b d f h w"]:
        """The input of the adapted projection; the blocks of the next forward are conditioned too.

        Args:
            noisy: latents.
            canvas: with the condition.
            context: the pooled prompt.
            native: channels that the released model concatenates.
            chosen: indices of the tokens that the forward computes; all, if left out.
            network: the one whose forward it is, where there are several.
        """
        blocks = (self.denoiser if network is None else network).get_submodule(self.blocks[0])
        if isinstance(blocks, ConditionedBlocks):
            blocks.condition_on(canvas.condition, chosen)
        own = noisy if native is None else torch.cat([noisy, native.to(noisy)], dim=1)
        return conditioned(own, canvas.condition, context.pooled if self.prompt_modulation else None)

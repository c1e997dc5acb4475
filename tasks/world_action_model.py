"""Building, generating and decoding canvases, shared by all world action tasks."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, Kind, Plan, build_canvas
from ai_wam.diffusion.solvers import Sampling
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath
from ai_wam.types import ActionChunk, Batch, Clip, Encoded, Observation, Policy
from ai_wam.utils.seeds import episode_noise
from backbones.base import VideoBackbone
from backbones.conditions.prompts import Context
from tasks.checked_weights import CheckedWeights
from tasks.decoding.action_head import ActionHead
from tasks.decoding.decoders import ActingBy, Generated, decoders_of
from tasks.decoding.latent_reading import Codec, LatentReader, fit_reader
from tasks.real_time_chunking import Prefix, begin, committed_prefix
from tasks.training.cache_encoding import encode_pictures, encoder_identity
from tasks.training.plan_mixture import check_video


class WorldActionModel(CheckedWeights):
    """A backbone that generates video and actions; `tasks.base.WorldActionTask` documents the arguments.

    Raises:
        ValueError: settings that do not fit the backbone, the clip or one another.
    """

    def __init__(
        self,
        backbone: VideoBackbone,
        clip: Clip,
        tokenizer: ActionImageTokenizer,
        control_plan: Plan,
        sampling: Sampling,
        seed: int,
        action_head: ActionHead | None,
        decoder: str | None,
        decoded_frames: int | None,
        prefix: Prefix,
    ) -> None:
        super().__init__()
        self.backbone, self.clip, self.tokenizer = backbone, clip, tokenizer
        self.control_plan = control_plan
        self.latent_frames = backbone.spec.latent_frames(clip.frames)
        backbone.spec.grid(clip.size)
        self.sampling, self.prefix, self.seed = sampling, prefix, seed
        if decoded_frames is not None and not 2 <= decoded_frames <= clip.frames:
            raise InvalidValue(
                f"decoded_frames must lie between 2 and the clip's {clip.frames} frames, got {decoded_frames}"
            )
        self.decoded_frames = decoded_frames
        self.action_head = action_head
        self.decoders = decoders_of(action_head, self._fit_reader if decoder == "latent" else None)
        self.decoder = decoder or ("whole" if action_head is None else "head")
        if self.decoder not in self.decoders:
            raise InvalidValue(
                f"decoder {decoder!r} is none of {', '.join([*self.decoders, 'latent'])}; choose one of "
                "them, or give an action_head for 'head'"
            )
        if action_head is not None:
            if not backbone.spec.rays:
                raise InvalidValue(
                    "an action_head reads the rays of the canvas; set rays: true, or take it off"
                )
            action_head.fit_to(backbone.spec.channels)
        self.register_load_state_dict_pre_hook(_drop_head)
        self.register_load_state_dict_post_hook(_allow_new_head)

    # ------------------------------------------------------------------ canvases

    def training_canvas(self, batch: Batch, chosen: Plan, prefix: Int[Tensor, "b"] | None = None) -> Canvas:
        """The canvas of recorded clips, with targets; `prefix`: see `build_canvas`."""
        cameras, encoded = self.cameras_of(batch, chosen), batch.encoded
        check_video(batch, chosen)
        if encoded is None:
            video = batch.video if chosen.needs_video else None
            encoded = encode_pictures(self.backbone, batch.video[:, :, :, :1], self.clip.frames, video)
        action = encoded.action
        if action is None and chosen.needs_actions:
            action = self.encode_actions(batch.actions, cameras)
        return self._canvas(chosen, batch.observation, cameras, encoded, action, prefix)

    @staticmethod
    def cameras_of(batch: Batch, chosen: Plan) -> Cameras:
        """The cameras of a plan: those whose movement it does not know stay where they are at time 0."""
        if chosen.knows_cameras:
            return batch.cameras
        return batch.cameras.map(lambda matrix: matrix[:, :, :1].expand_as(matrix))

    def encode_actions(
        self, actions: Float[Tensor, "b t 8"], cameras: Cameras
    ) -> Float[Tensor, "b v c tl h w"]:
        """Latents of the action images of every view."""
        return self.backbone.encode(self._action_images(actions, cameras))

    def _action_images(
        self, actions: Float[Tensor, "b t 8"], cameras: Cameras
    ) -> Float[Tensor, "b v 3 t h w"]:
        """Action images in [-1, 1]."""
        return self.tokenizer.encode(actions, cameras, self.clip.size).mul_(2).sub_(1)

    def _context(
        self, prompts: Sequence[str], observation: Observation, encoded: Encoded | None = None
    ) -> Context:
        now, images = observation.video[:, :, :, -1:], None if encoded is None else encoded.images
        return self.backbone.encode_context(prompts, now, observation.view_mask, images)

    def _canvas(
        self,
        chosen: Plan,
        observation: Observation,
        cameras: Cameras,
        encoded: Encoded,
        action: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Canvas:
        """The canvas of encoded pictures and, where they are known, latents of the action images."""
        backbone, frames = self.backbone, self.clip.frames
        drawn, first = (
            self._action_images(observation.action[:, None], cameras[:, :, :1]),
            encoded.first_action,
        )
        first = backbone.encode(drawn) if first is None else first
        still = None
        if encoded.still is not None:
            # The recorded pose may be at hand, but is no condition of this plan.
            picture = drawn if chosen.knows_pose else torch.full_like(drawn, -1)
            still = backbone.encode_still(
                picture, first if chosen.knows_pose else backbone.encode(picture), frames
            )
        camera_latents = encoded.cameras
        if camera_latents is None:
            camera_latents = backbone.encode_cameras(cameras, self.clip.size, frames)
        canvas = build_canvas(
            chosen,
            backbone.spec,
            self.clip.size,
            cameras,
            observation.view_mask,
            first_video=encoded.first,
            first_action=first,
            video=encoded.video if chosen.needs_video else None,
            action=action,
            latent_frames=self.latent_frames,
            stills=None if encoded.still is None or still is None else (encoded.still, still),
            camera_latents=camera_latents,
            prefix=prefix,
        )
        return backbone.hold(canvas)

    # ------------------------------------------------------------------ caches: `ai_wam.types.ClipEncoder`

    def encoders(self) -> dict[str, Any]:
        """Everything on which the latents of pictures and action images depend, as JSON values."""
        return encoder_identity(self.backbone, self.tokenizer)

    @torch.no_grad()
    def encode_batch(self, batch: Batch, actions: bool) -> Encoded:
        """Latents of decoded clips, for a cache; of action images and cameras as they stand in the batch."""
        whole = batch.video if bool(batch.video_valid.all()) else None
        self.backbone.codec.to(batch.video.device)  # the denoiser stays where it is
        encoded = encode_pictures(self.backbone, batch.video[:, :, :, :1], self.clip.frames, whole)
        cameras = self.backbone.encode_cameras(batch.cameras, self.clip.size, self.clip.frames)
        if not actions:
            return replace(encoded, cameras=cameras)
        drawn = self._action_images(batch.actions, batch.cameras)
        first, action = self.backbone.encode(drawn[:, :, :, :1]), self.backbone.encode(drawn)
        return replace(encoded, cameras=cameras, first_action=first, action=action)

    def keep_prompts(self, folder: AnyPath, prompts: Sequence[str] = ()) -> bool:
        """Use embeddings of prompts kept in a folder, and add those of `prompts` to it."""
        return self.backbone.prompts.keep(folder, prompts)

    # ------------------------------------------------------------------ acting

    def reset(self, episodes: Sequence[str]) -> None:
        """Do nothing: no state is kept between predictions."""

    def predict_action(self, observation: Observation) -> ActionChunk:
        """The poses at the clip's frame times after the observation, decoded from generated action images.

        The draw depends on each row's episode and time alone, so a row's result does not depend on its batch.
        Cameras are taken to stay where they are.
        """
        return self.act(observation, self.decoder)

    def by_decoder(self, knows_std: bool = False) -> dict[str, Policy]:
        """This model with each of its other decoders; see `ai_wam.types.MultiDecoderPolicy`."""
        own = self.decoders[self.decoder].reading
        others = {
            rung.reading: name
            for name, rung in self.decoders.items()
            if rung.reading != own and rung.knows_std >= knows_std
        }
        return {reading: ActingBy(self, name) for reading, name in others.items()}

    @torch.no_grad()
    def act(self, observation: Observation, decoder: str) -> ActionChunk:
        """`predict_action` by one of the decoders."""
        frames, rung = self.clip.frames, self.decoders[decoder]
        observation = observation.to(self.device)
        cameras = observation.cameras.map(lambda m: m[:, :, -1:].expand(-1, -1, frames, -1, -1))
        canvas, latents = self.generate(self.control_plan, observation, cameras)
        segments = self.decode_segments(canvas, latents, self.decoded_frames, rung.kinds)
        made = self.generated(canvas, latents, segments.get(Kind.ACTION), cameras, observation)
        decoded = rung.read(made)
        generated = {"action_images": rung.pictures(made).cpu()}
        if Kind.VIDEO in segments and segments[Kind.VIDEO].shape[3] > 1:
            generated["observation"] = segments[Kind.VIDEO].cpu()
        return ActionChunk(
            actions=decoded.actions[:, 1:].float().cpu(),
            valid=decoded.valid[:, 1:].cpu(),
            confidence=decoded.confidence[:, 1:].float().cpu(),
            dt=self.clip.seconds_per_frame,
            generated=generated,
            position_std=decoded.position_std[:, 1:].float().cpu() if rung.knows_std else None,
            status=decoded.status[:, 1:].cpu(),
        )

    def generate(
        self,
        chosen: Plan,
        observation: Observation,
        cameras: Cameras,
        video: Tensor | None = None,
        action: Tensor | None = None,
    ) -> tuple[Canvas, Float[Tensor, "b c f h w"]]:
        """Sample the canvas of an observation; `video` and latents `action`: of what the plan gives whole."""
        prefix = None
        if action is None and observation.committed is not None and self.prefix.condition:
            drawn, prefix = committed_prefix(observation, self.backbone.spec, self.clip.frames)
            latents = self.encode_actions(drawn, cameras[:, :, : drawn.shape[1]])
            action = begin(latents, prefix, self.latent_frames)
        now = observation.video[:, :, :, -1:]
        encoded = encode_pictures(self.backbone, now, self.clip.frames, video)
        canvas = self._canvas(chosen, observation, cameras, encoded, action, prefix)
        shape = canvas.clean.shape[1:]
        noise = episode_noise(self.seed, observation.episodes, observation.seconds.tolist(), shape)
        noise = noise.to(self.device)
        context = self._context(observation.prompts, observation, encoded)
        null = self._context([""] * len(noise), observation, encoded) if self.sampling.guidance != 1 else None
        return canvas, self.backbone.sample(
            canvas, context, noise, self.sampling.steps, self.sampling.guidance, null, self.sampling.solver
        )

    def generated(
        self,
        canvas: Canvas,
        latents: Float[Tensor, "b c f lh lw"],
        images: Float[Tensor, "b v 3 t h w"] | None,
        cameras: Cameras,
        observation: Observation,
    ) -> Generated:
        """The input of the decoders; of the cameras, the frames whose action images are decoded."""
        seen = cameras[:, :, : self.decoded_frames if images is None else images.shape[3]]
        return Generated(canvas, latents, images, seen, observation, self.tokenizer)

    @torch.no_grad()
    def _fit_reader(self) -> LatentReader:
        backbone = self.backbone
        codec = Codec(backbone.encode, backbone.decode, backbone.spec, self.device)
        return fit_reader(codec, self.tokenizer, self.clip.size)

    def decode_segments(
        self,
        canvas: Canvas,
        latents: Float[Tensor, "b c f h w"],
        frames: int | None = None,
        kinds: Sequence[Kind] = tuple(Kind),
    ) -> dict[Kind, Float[Tensor, "b v 3 _ _ _"]]:
        """Videos in [-1, 1] of the kinds asked for, all views of a kind stacked.

        Args:
            canvas: what the latents were generated for.
            latents: the packed canvas.
            frames: how many frames are decoded, from the first on; all, if left out.
            kinds: what is decoded.
        """
        parts: dict[Kind, list[Tensor]] = defaultdict(list)
        for segment, part in zip(canvas.segments, canvas.unpack(latents.float()), strict=True):
            if segment.kind in kinds:
                parts[segment.kind].append(part)
        return {
            kind: self.backbone.decode(torch.stack(views, dim=1), frames)
            for kind, views in parts.items()
            if len({view.shape[2] for view in views}) == 1
        }

    def generate_videos(self, batch: Batch, chosen: Plan) -> dict[Kind, Float[Tensor, "b v 3 _ h w"]]:
        """Videos in [-1, 1] that a plan generates for recorded clips; only what it gives is a condition."""
        return self.decode_segments(*self.generate_for(batch, chosen))

    @torch.no_grad()
    def generate_for(self, batch: Batch, chosen: Plan) -> tuple[Canvas, Float[Tensor, "b c f h w"]]:
        """The canvas of recorded clips by a plan, and the generated latents."""
        check_video(batch, chosen)
        given = {each.kind for each in chosen.segments(batch.video.shape[1], 2) if each.given == 2}
        cameras = self.cameras_of(batch, chosen)
        video = batch.video if Kind.VIDEO in given else None
        action = self.encode_actions(batch.actions, cameras) if Kind.ACTION in given else None
        return self.generate(chosen, batch.observation, cameras, video, action)

    @torch.no_grad()
    def recode(self, batch: Batch, kind: Kind, cameras: Cameras) -> Float[Tensor, "b v 3 t h w"]:
        """The recorded video, or the recorded actions' images, encoded and decoded by the codec."""
        video = batch.video if kind is Kind.VIDEO else self._action_images(batch.actions, cameras)
        return self.backbone.decode(self.backbone.encode(video))


_HEAD = "action_head."  # prefix of its weights in a checkpoint


def _drop_head(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Load hook: drop the weights of an action head that this model does not have."""
    if module.action_head is None:
        for name in [name for name in state if name.startswith(prefix + _HEAD)]:
            del state[name]


def _allow_new_head(module: nn.Module, incompatible: Any) -> None:
    """Load hook: all weights of an action head may be missing (it is new), but not some of them."""
    missing = {name for name in incompatible.missing_keys if name.startswith(_HEAD)}
    own = {name for name in module.state_dict() if name.startswith(_HEAD)}
    if missing and missing == own:
        warnings.warn("the weights hold no action head: this model's is untrained", stacklevel=2)
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in missing]

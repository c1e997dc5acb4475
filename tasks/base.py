"""The training loop, sampling and logging that all tasks share; subclasses choose plans and outputs."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ai_wam.action_images import ActionImageTokenizer, DecodedActions
from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, Kind, Plan, build_canvas, plan
from ai_wam.files import AnyPath
from ai_wam.samplers import Solver
from ai_wam.seeds import named_generator
from ai_wam.types import ActionChunk, Batch, Clip, Encoded, Observation
from backbones.base import VideoBackbone
from backbones.prompts import Context
from tasks.action_head import ActionHead
from tasks.chunking import begin, check_dropin, committed_prefix, draw_prefix
from tasks.encoding import encode_pictures, encoder_identity
from tasks.evaluation import Trials, log_sample_videos
from tasks.judge import Judge, finish
from tasks.metrics.action import ActionAccuracy
from tasks.metrics.networks import check_names, left_out, load_networks
from tasks.optimization import Schedule, adamw, parameter_groups


class WorldActionTask(LightningModule):
    """A world action model: a backbone, the clip it sees, and the plans it is trained on.

    All tasks share one state_dict, so a checkpoint of any of them loads into the others.

    Args:
        backbone: the video model.
        clip: frames, stride, size and views; data and benchmarks follow it.
        tokenizer: how actions are drawn.
        plans: what is trained, by name, with relative shares; drawn per sample.
        control_plan: the plan by which `predict_action` acts.
        learning_rate: peak rate of AdamW.
        weight_decay: on matrices; biases, norms and modulation tables have none.
        warmup_steps: of linear warm-up.
        schedule: "cosine" falls to a hundredth at the trainer's last step; "constant" stays.
        prompt_dropout: share of samples that train with the empty prompt.
        sampling_steps: network evaluations of one prediction.
        guidance: scale of classifier-free guidance; 1 is off.
        solver: how a prediction walks the noise path; see `ai_wam.samplers`.
        decode_observation: whether acting also decodes the observation that a plan imagines, for pictures;
            the actions are the same without.
        action_head: a learned decoder on top of the geometric one; trained beside the video model, on its
            estimates, without changing them.
        freeze_backbone: train the action head alone.
        decoder: which of the two acts; the head where there is one, if left out.
        decoded_frames: video frames of a prediction that are decoded, the present one included; all, if left
            out. Whoever executes a part of a chunk saves the decoding of the rest.
        seed: of everything the task draws: plans, noise levels, noise.
        prefix_dropin: share of rows that train with a random number of their first actions given, as they
            are while a chunk is carried out and the next one is planned; see `tasks.chunking`.
        give_committed: give committed actions to the model; if not, it plans as if it knew of none.
        test_plans: what `ai-wam test` judges on recorded clips, by name; the plans trained on, if left out.
        test_networks: files of the networks of video metrics, by the metric's name: `lpips_alex`,
            `lpips_vgg`, `fvd_i3d` ...; see `tasks.metrics.networks`. Metrics without a file are left out.
    """

    default_plans: ClassVar[dict[str, float]] = {}  # of a subclass that is given none

    def __init__(
        self,
        backbone: VideoBackbone,
        clip: Clip,
        plans: dict[str, float],
        control_plan: str,
        tokenizer: ActionImageTokenizer | None = None,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        schedule: Schedule = "cosine",
        prompt_dropout: float = 0.05,
        sampling_steps: int = 4,
        guidance: float = 1.0,
        solver: Solver = "euler",
        decoded_frames: int | None = None,
        decode_observation: bool = True,
        action_head: ActionHead | None = None,
        freeze_backbone: bool = False,
        decoder: Literal["geometric", "head"] | None = None,
        seed: int = 0,
        prefix_dropin: float = 0.0,
        give_committed: bool = True,
        test_plans: list[str] | None = None,
        test_networks: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.clip, self.tokenizer = backbone, clip, tokenizer or ActionImageTokenizer()
        self.plans = [(plan(name), share) for name, share in plans.items() if share > 0]
        if not self.plans:
            raise ValueError(f"plans must name at least one plan with a positive share, got {plans}")
        self.control_plan = plan(control_plan)
        self.latent_frames = backbone.spec.latent_frames(clip.frames)
        backbone.spec.grid(clip.size)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps, self.schedule = warmup_steps, schedule
        self.prompt_dropout, self.sampling_steps, self.guidance = prompt_dropout, sampling_steps, guidance
        self.solver, self.seed, self.decoded_frames = solver, seed, decoded_frames
        if decoded_frames is not None and not 2 <= decoded_frames <= clip.frames:
            raise ValueError(
                f"decoded_frames must lie between 2 and the clip's {clip.frames} frames, got {decoded_frames}"
            )
        check_dropin(prefix_dropin, backbone.spec, clip.frames)
        self.prefix_dropin, self.give_committed = prefix_dropin, give_committed
        self.test_plans = [plan(name) for name in test_plans or [chosen.name for chosen, _ in self.plans]]
        self.test_networks = test_networks or {}
        check_names(self.test_networks)
        self._judges: list[Judge] = []  # no modules of this one: their networks stay out of checkpoints
        self.errors = ActionAccuracy()
        self.decode_observation, self.action_head = decode_observation, action_head
        self.decoder = decoder or ("geometric" if action_head is None else "head")
        self.freeze_backbone = freeze_backbone
        if action_head is None and (self.decoder == "head" or freeze_backbone):
            raise ValueError("decoder: head and freeze_backbone need an action_head; set one")
        if action_head is not None:
            action_head.fit_to(backbone.spec.channels)
        if freeze_backbone:
            backbone.requires_grad_(False)
        self._sharded = False

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch: every row by its own plan, rows of equal plans in one forward."""
        self._check(batch)
        generator = named_generator(self.seed, "train", self.current_epoch, batch_idx, self.global_rank)
        drop = torch.rand(len(batch.keys), generator=generator) < self.prompt_dropout
        prompts = [
            "" if dropped else prompt for prompt, dropped in zip(batch.prompts, drop.tolist(), strict=True)
        ]
        total = batch.video.new_zeros(())
        for chosen, rows in self._draw_plans(batch, generator):
            part = batch.rows(rows)
            prefix = draw_prefix(self.prefix_dropin, chosen, part, self.backbone.spec, generator)
            canvas = self.training_canvas(part, chosen, prefix)
            u = self.backbone.path.draw(len(rows), generator).to(self.device)
            noise = torch.randn(canvas.clean.shape, generator=generator).to(self.device)
            context = self._context([prompts[row] for row in rows], part.observation, part.encoded)
            with torch.set_grad_enabled(not self.freeze_backbone):
                loss, estimate = self.backbone.loss_and_estimate(canvas, context, u, noise)
            if self.action_head is not None and chosen.generates_actions:
                corrected = self._head_loss(part, chosen, canvas, estimate.detach())
                self.log(f"train/head_{chosen.name}", corrected.mean(), batch_size=len(rows))
                total = total + corrected.sum()
            self.log(f"train/loss_{chosen.name}", loss.mean(), batch_size=len(rows))
            self.log(f"train/share_{chosen.name}", len(rows) / len(batch.keys), batch_size=len(batch.keys))
            total = total if self.freeze_backbone else total + loss.sum()
        total = total / len(batch.keys)
        self.log("train/loss", total, prog_bar=True, batch_size=len(batch.keys))
        return total

    def _head_loss(
        self, batch: Batch, chosen: Plan, canvas: Canvas, estimate: Float[Tensor, "b c f h w"]
    ) -> Float[Tensor, "b"]:
        """Loss of the action head on what the network sees in noisy latents."""
        assert self.action_head is not None
        cameras = self._cameras(batch, chosen)
        images = self.decode_segments(canvas, estimate, kinds=(Kind.ACTION,))[Kind.ACTION]
        read = self.decode_actions(images, cameras, batch.observation)
        actions = self.action_head(canvas, estimate, read, cameras, batch.actions[:, 0])
        loss: Tensor = self.action_head.loss(actions, batch.actions)
        return loss

    def _draw_plans(self, batch: Batch, generator: torch.Generator) -> list[tuple[Plan, list[int]]]:
        """Each plan with its rows; rows without recorded actions take part as video-only."""
        shares = torch.tensor([share for _, share in self.plans])
        draws = torch.multinomial(shares, len(batch.keys), replacement=True, generator=generator).tolist()
        rows = defaultdict(list)
        for row, draw in enumerate(draws):
            chosen = self.plans[draw][0]
            if chosen.needs_actions and not bool(batch.action_valid[row].all()):
                chosen = plan("video_only")
            rows[chosen].append(row)
        return list(rows.items())

    def training_canvas(self, batch: Batch, chosen: Plan, prefix: Int[Tensor, "b"] | None = None) -> Canvas:
        """The canvas of a batch whose truth is known; `prefix`: see `build_canvas`."""
        cameras, encoded = self._cameras(batch, chosen), batch.encoded
        self._check_video(batch, chosen)
        if encoded is None:
            video = batch.video if chosen.needs_video else None
            encoded = encode_pictures(self.backbone, batch.video[:, :, :, :1], self.clip.frames, video)
        action = encoded.action
        if action is None and chosen.needs_actions:
            action = self.encode_actions(batch.actions, cameras)
        return self._canvas(chosen, batch.observation, cameras, encoded, action, prefix)

    @staticmethod
    def _cameras(batch: Batch, chosen: Plan) -> Cameras:
        """A camera whose movement the plan does not know is taken to stay, as in `predict_action`."""
        if chosen.knows_cameras:
            return batch.cameras
        return batch.cameras.map(lambda matrix: matrix[:, :, :1].expand_as(matrix))

    @staticmethod
    def _check_video(batch: Batch, chosen: Plan) -> None:
        known = batch.encoded is not None and batch.encoded.video is not None
        if chosen.needs_video and not known:
            missing = [
                key
                for key, valid in zip(batch.keys, batch.video_valid.all(1).tolist(), strict=True)
                if not valid
            ]
            if missing:
                raise ValueError(
                    f"plan {chosen.name!r} needs all frames of the observation video, which {missing[0]!r} "
                    "lacks; set `decode: all` in the data's configuration"
                )

    def encode_actions(
        self, actions: Float[Tensor, "b t 8"], cameras: Cameras
    ) -> Float[Tensor, "b v c tl h w"]:
        """Latents of the action images of every view."""
        return self.backbone.encode(self._draw(actions, cameras))

    def _draw(self, actions: Float[Tensor, "b t 8"], cameras: Cameras) -> Float[Tensor, "b v 3 t h w"]:
        """Action images in [-1, 1]."""
        return 2 * self.tokenizer.encode(actions, cameras, self.clip.size) - 1

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
        drawn, first = self._draw(observation.action[:, None], cameras[:, :, :1]), encoded.first_action
        first = backbone.encode(drawn) if first is None else first
        still = None
        if encoded.still is not None:
            # The truth may be known, but nobody is shown it.
            shown = drawn if chosen.knows_pose else torch.full_like(drawn, -1)
            still = backbone.encode_still(
                shown, first if chosen.knows_pose else backbone.encode(shown), frames
            )
        told = encoded.cameras
        if told is None:
            told = backbone.encode_cameras(cameras, self.clip.size, frames)
        return build_canvas(
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
            camera_latents=told,
            prefix=prefix,
        )

    # ------------------------------------------------------------------ caches: `ai_wam.types.ClipEncoder`

    def encoders(self) -> dict[str, Any]:
        """What decides the latents of pictures, and of action images."""
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
        drawn = self._draw(batch.actions, batch.cameras)
        first, action = self.backbone.encode(drawn[:, :, :, :1]), self.backbone.encode(drawn)
        return replace(encoded, cameras=cameras, first_action=first, action=action)

    def keep_prompts(self, folder: AnyPath, prompts: Sequence[str] = ()) -> bool:
        """Embeddings of prompts in a folder: used from there, and those of `prompts` put there."""
        return self.backbone.prompts.keep(folder, prompts)

    # ------------------------------------------------------------------ training set-up

    def configure_model(self) -> None:
        """Shard the backbone where the strategy has a mesh (Lightning's ModelParallelStrategy)."""
        if self.device_mesh is not None and not self._sharded:
            self.backbone.shard(self.device_mesh["data_parallel"])
            self._sharded = True

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that is trained; norms, biases and modulation tables without weight decay."""
        trained = [self.backbone.denoiser, *([] if self.action_head is None else [self.action_head])]
        return parameter_groups(trained, self.weight_decay)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up, then the schedule."""
        steps = self.trainer.estimated_stepping_batches
        return adamw(self.parameter_groups(), self.learning_rate, self.warmup_steps, self.schedule, steps)

    # ------------------------------------------------------------------ acting

    def reset(self, episodes: Sequence[str]) -> None:
        """Nothing is remembered between predictions."""

    @torch.no_grad()
    def predict_action(self, observation: Observation) -> ActionChunk:
        """The poses at the clip's frame times after the observation, decoded from generated action images.

        The draw depends on each row's episode and time alone, so a row's result does not depend on its batch.
        Cameras are taken to stay where they are.
        """
        frames = self.clip.frames
        observation = observation.to(self.device)
        cameras = observation.cameras.map(lambda m: m[:, :, -1:].expand(-1, -1, frames, -1, -1))
        canvas, latents = self.generate(self.control_plan, observation, cameras)
        kinds = tuple(Kind) if self.decode_observation else (Kind.ACTION,)
        segments = self.decode_segments(canvas, latents, self.decoded_frames, kinds)
        cameras = cameras[:, :, : segments[Kind.ACTION].shape[3]]
        decoded = self.decode_actions(segments[Kind.ACTION], cameras, observation)
        if self.decoder == "head":
            decoded = self.correct(canvas, latents, decoded, cameras, observation)
        imagined = {"action_images": segments[Kind.ACTION].cpu()}
        if Kind.VIDEO in segments and segments[Kind.VIDEO].shape[3] > 1:
            imagined["observation"] = segments[Kind.VIDEO].cpu()
        return ActionChunk(
            actions=decoded.actions[:, 1:].float().cpu(),
            valid=decoded.valid[:, 1:].cpu(),
            confidence=decoded.confidence[:, 1:].float().cpu(),
            dt=self.clip.seconds_per_frame,
            imagined=imagined,
            position_std=decoded.position_std[:, 1:].float().cpu(),
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
        if action is None and observation.committed is not None and self.give_committed:
            drawn, prefix = committed_prefix(observation, self.backbone.spec, self.clip.frames)
            latents = self.encode_actions(drawn, cameras[:, :, : drawn.shape[1]])
            action = begin(latents, prefix, self.latent_frames)
        now = observation.video[:, :, :, -1:]
        encoded = encode_pictures(self.backbone, now, self.clip.frames, video)
        canvas = self._canvas(chosen, observation, cameras, encoded, action, prefix)
        draws = zip(observation.episodes, observation.seconds.tolist(), strict=True)
        noise = torch.stack(
            [
                torch.randn(
                    canvas.clean.shape[1:], generator=named_generator(self.seed, episode, f"{seconds:.3f}")
                )
                for episode, seconds in draws
            ]
        ).to(self.device)
        context = self._context(observation.prompts, observation, encoded)
        null = self._context([""] * len(noise), observation, encoded) if self.guidance != 1 else None
        return canvas, self.backbone.sample(
            canvas, context, noise, self.sampling_steps, self.guidance, null, self.solver
        )

    def correct(
        self,
        canvas: Canvas,
        latents: Float[Tensor, "b c f h w"],
        read: DecodedActions,
        cameras: Cameras,
        observation: Observation,
    ) -> DecodedActions:
        """The action head's poses in the place of the geometric ones; every step has one."""
        assert self.action_head is not None
        actions = self.action_head(canvas, latents, read, cameras, observation.action)
        return replace(read, actions=actions, valid=torch.ones_like(read.valid))

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

    def decode_actions(
        self, video: Float[Tensor, "b v 3 t h w"], cameras: Cameras, observation: Observation
    ) -> DecodedActions:
        """Poses of an action video in [-1, 1]."""
        return self.tokenizer.decode((video + 1) / 2, cameras, view_mask=observation.view_mask)

    # ------------------------------------------------------------------ judging

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Errors of sampled actions against the recorded ones; sample videos of the first batch."""
        self._check(batch)
        chunk = self.predict_action(batch.observation)
        self.errors.update(chunk.actions.to(self.device), chunk.valid.to(self.device), batch)
        if batch_idx == 0:
            log_sample_videos(self, batch, chunk, self.tokenizer)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's errors."""
        self.log_dict(
            {f"val/{name}": value for name, value in self.errors.compute().items()}, sync_dist=False
        )
        self.errors.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> ActionChunk:
        """What the policy would do at the first frame of every sample."""
        self._check(batch)
        return self.predict_action(batch.observation)

    def test_step(self, batch: Trials | Batch, batch_idx: int) -> None:
        """Trials of a benchmark run closed loops; recorded clips are judged plan by plan."""
        if isinstance(batch, Trials):
            batch.run(self)
            return
        self._check(batch)
        if not self._judges:
            networks = load_networks(self.test_networks, self.clip)
            self._judges = [
                Judge(each, self.tokenizer, networks, self.device, self.action_head is not None)
                for each in self.test_plans
            ]
        for judge in self._judges:
            cameras = self._cameras(batch, judge.plan)
            codec = {kind: self._recode(batch, kind, cameras) for kind in judge.kinds}
            canvas, latents = self._imagined(batch, judge.plan)
            videos, head = self.decode_segments(canvas, latents), None
            if self.action_head is not None and judge.plan.generates_actions:
                read = self.decode_actions(videos[Kind.ACTION], cameras, batch.observation)
                head = self.correct(canvas, latents, read, cameras, batch.observation)
            judge.update(batch, cameras, videos, codec, head)

    def on_test_epoch_start(self) -> None:
        """Forget a test that was interrupted."""
        self._judges = []

    def on_test_epoch_end(self) -> None:
        """Report on recorded clips; trials report themselves."""
        judges, self._judges = self._judges, []
        if judges:
            videos = any(Kind.VIDEO in judge.kinds for judge in judges)
            finish(self, judges, left_out(self.test_networks) if videos else {})

    def imagine(self, batch: Batch, chosen: Plan) -> dict[Kind, Float[Tensor, "b v 3 _ h w"]]:
        """Videos in [-1, 1] of recorded clips as a plan generates them; it is told what it gives, no more."""
        return self.decode_segments(*self._imagined(batch, chosen))

    @torch.no_grad()
    def _imagined(self, batch: Batch, chosen: Plan) -> tuple[Canvas, Float[Tensor, "b c f h w"]]:
        self._check_video(batch, chosen)
        told = {each.kind for each in chosen.segments(batch.video.shape[1], 2) if each.given == 2}
        cameras = self._cameras(batch, chosen)
        video = batch.video if Kind.VIDEO in told else None
        action = self.encode_actions(batch.actions, cameras) if Kind.ACTION in told else None
        return self.generate(chosen, batch.observation, cameras, video, action)

    def _recode(self, batch: Batch, kind: Kind, cameras: Cameras) -> Float[Tensor, "b v 3 t h w"]:
        """What is left of the recorded video, or of the recorded actions' images, behind the codec."""
        shown = batch.video if kind is Kind.VIDEO else self._draw(batch.actions, cameras)
        return self.backbone.decode(self.backbone.encode(shown))

    def _check(self, batch: Batch) -> None:
        found, wanted = tuple(batch.video.shape[-2:]), tuple(self.clip.size)
        if found != wanted or batch.video.shape[1] > len(self.clip.views):
            raise ValueError(
                f"the data gives {batch.video.shape[1]} views of {found} pixels, the model's clip has "
                f"{len(self.clip.views)} views of {wanted}; give both the same clip"
            )

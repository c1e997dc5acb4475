"""A diffusion policy: the usual way to act from pictures, as a baseline for world action models.

A picture network per view, the instruction and the present pose condition the denoising of a chunk of
actions, which are numbers here and not pictures (MV-Policy in arXiv 2604.06168; arXiv 2303.04137). Shards,
optimizer, averaged weights, protocol and report are those of the other tasks.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ai_wam.diffusion.noise_paths import FlowMatching, NoisePath
from ai_wam.diffusion.solvers import Sampling, integrate
from ai_wam.errors import InvalidValue
from ai_wam.poses import rotation_from_quaternion
from ai_wam.types import ActionChunk, Batch, Clip, Observation
from ai_wam.utils.number_checks import check_numbers
from ai_wam.utils.seeds import episode_noise, named_generator
from backbones.conditions.prompts import HashedWords, PromptEncoder
from tasks.evaluation.recorded_clips import report_metrics
from tasks.evaluation.sample_videos import Trials
from tasks.metrics.action import ActionAccuracy
from tasks.numeric.chunk_denoiser import ChunkDenoiser
from tasks.numeric.relative_actions import RelativeActions
from tasks.numeric.view_encoder import ViewEncoder
from tasks.training.finite_steps import SeenBatch
from tasks.training.optimized_task import OptimizedTask
from tasks.training.optimizer import (
    AdamW,
    CosineWithWarmup,
    LRSchedulerCallable,
    OptimizerCallable,
    parameter_groups,
)
from tasks.training.plan_mixture import check_clip, drop_prompts

_PLAN = "policy"  # by which metrics are named, as those of world action models that act


class DiffusionPolicy(OptimizedTask):
    """Denoises chunks of actions, given pictures, cameras, instruction and present pose.

    All poses of a chunk are valid with a confidence of 1: the policy does not say when it is unsure.

    Args:
        clip: frames, stride, size and views; a chunk has one action for every frame after the first.
        encoder: of the pictures.
        denoiser: of the actions.
        prompts: encoder of the instruction.
        scale: the unit of actions.
        path: noise path of the actions.
        sampling: steps and solver of a prediction.
        prompt_dropout: share of samples that train with the empty prompt.
        optimizer: of parameter groups; biases and norms have no weight decay.
        lr_scheduler: of that optimizer, stepped with it.
        seed: of everything the task draws: noise levels, noise.

    Raises:
        ValueError: an encoder and a denoiser of different widths, or guidance, which it does not have.
    """

    def __init__(
        self,
        clip: Clip = Clip(),  # noqa: B008 - frozen
        encoder: ViewEncoder | None = None,
        denoiser: ChunkDenoiser | None = None,
        prompts: PromptEncoder | None = None,
        scale: RelativeActions = RelativeActions(),  # noqa: B008 - frozen
        path: NoisePath = FlowMatching(),  # noqa: B008 - frozen
        sampling: Sampling = Sampling(steps=8),  # noqa: B008 - frozen
        prompt_dropout: float = 0.0,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable = CosineWithWarmup,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.clip, self.scale, self.path, self.sampling, self.seed = clip, scale, path, sampling, seed
        self.encoder = encoder or ViewEncoder(options={"norm_layer": "groupnorm"})
        self.denoiser = denoiser or ChunkDenoiser()
        self.prompts = prompts or HashedWords()
        self.prompts.requires_grad_(False)
        if self.encoder.width != self.denoiser.width:
            raise InvalidValue(
                f"DiffusionPolicy: encoder.width is {self.encoder.width}, denoiser.width "
                f"{self.denoiser.width}; give both the same"
            )
        if sampling.guidance != 1:
            raise InvalidValue(f"DiffusionPolicy: it is not guided, got guidance {sampling.guidance}; set 1")
        self.encoder.fit_to(len(clip.views), self.prompts.width)
        self.denoiser.fit_to(clip.frames - 1, scale.CHANNELS, self.prompts.width)
        check_numbers("DiffusionPolicy", at_least=0, at_most=1, prompt_dropout=prompt_dropout)
        self.prompt_dropout = prompt_dropout
        self.set_optimizer(optimizer, lr_scheduler)
        self._accuracy: dict[str, ActionAccuracy] = {}  # by arm
        self._clips = 0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder and denoiser."""
        return parameter_groups([self.encoder, self.denoiser])

    def on_fit_start(self) -> None:
        """Refuse captions that the prompt encoder cannot take."""
        self.check_captions(self.prompts)

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean squared error of the clean actions, over recorded steps."""
        self._check(batch)
        generator = named_generator(self.seed, "train", self.current_epoch, batch_idx, self.global_rank)
        prompts = drop_prompts(batch, self.prompt_dropout, generator)
        known = batch.action_valid & batch.action_valid[:, :1]
        batch = replace(batch, actions=torch.where(known[..., None], batch.actions, _unmoved(batch.actions)))
        clean = self.scale.encode(batch.actions[:, 1:], batch.actions[:, 0])
        u = self.path.draw(len(clean), generator).to(self.device)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        level = u[:, None, None]
        noisy = self.path.add_noise(clean, noise, level)
        seen, mask = self._observed(batch.observation, prompts)
        estimate = self.denoiser(noisy, self.path.model_time(u).float(), seen, mask).float()
        error = (estimate - clean).square().mean(-1) * known[:, 1:] * self.path.weight(u)[:, None]
        loss = error.sum() / known[:, 1:].sum().clamp(min=1)
        self.steps.add(SeenBatch(loss.detach(), {_PLAN: batch.keys}))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.keys))
        return loss

    def _check(self, batch: Batch) -> None:
        check_clip(batch, self.clip)
        if not bool(batch.video_valid[:, 0].all()):
            raise InvalidValue(
                "DiffusionPolicy: a first frame was not decoded; it reads pictures, so leave data.cache out"
            )

    def _observed(
        self, observation: Observation, prompts: Sequence[str]
    ) -> tuple[Float[Tensor, "b n e"], Bool[Tensor, "b n"]]:
        """Tokens of what is known, and which of them are there."""
        now, context = observation.action, self.prompts.encode(prompts, self.device)
        views = self.encoder(
            observation.video[:, :, :, -1], observation.cameras[:, :, -1], now[:, :3], context.pooled
        )
        state = torch.cat(
            [now[:, :3], rotation_from_quaternion(now[:, 3:7]).flatten(1), 2 * now[:, 7:] - 1], dim=-1
        )
        return self.denoiser.observed(views, observation.view_mask, context.tokens, state)

    # ------------------------------------------------------------------ acting

    def reset(self, episodes: Sequence[str]) -> None:
        """Do nothing: no state is kept between predictions."""

    @torch.no_grad()
    def predict_action(self, observation: Observation) -> ActionChunk:
        """The poses at the clip's frame times after the observation.

        The draw depends on each row's episode and time alone, so a row's result does not depend on its batch.
        """
        observation = observation.to(self.device)
        seen, mask = self._observed(observation, observation.prompts)
        shape = (self.clip.frames - 1, self.scale.CHANNELS)
        noise = episode_noise(self.seed, observation.episodes, observation.seconds.tolist(), shape)
        noise = noise.to(self.device)

        def denoise(z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            clean = self.denoiser(z, self.path.model_time(u).float(), seen, mask).float()
            return clean, self.path.noise_from_clean(clean, z, u[:, None, None])

        steps, solver = self.sampling.steps, self.sampling.solver
        numbers = integrate(self.path, denoise, lambda z: z, noise, steps, solver)
        actions = self.scale.decode(numbers, observation.action).cpu()
        sure = torch.ones(actions.shape[:2])
        return ActionChunk(actions, sure.bool(), sure, self.clip.seconds_per_frame, generated={})

    def predict_step(self, batch: Batch, batch_idx: int) -> ActionChunk:
        """The policy's actions at the first frame of every sample."""
        self._check(batch)
        return self.predict_action(batch.observation)

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Errors of the predicted actions."""
        self._measure(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's errors."""
        found = self._accuracy.pop("model").compute()
        self._accuracy.clear()
        self.log_dict({f"val/{_PLAN}/{name}": value for name, value in found.items()}, sync_dist=False)

    def test_step(self, batch: Trials | Batch, batch_idx: int) -> None:
        """Trials of a benchmark run closed loops; of recorded clips the errors are measured."""
        if isinstance(batch, Trials):
            batch.run(self)
            return
        self._measure(batch)
        self._clips += len(batch.keys)

    def on_test_epoch_start(self) -> None:
        """Drop the metrics of a test that was interrupted."""
        self._accuracy.clear()
        self._clips = 0

    def on_test_epoch_end(self) -> None:
        """Report on recorded clips; trials report themselves."""
        if not self._accuracy:
            return
        found = {arm: each.compute() for arm, each in self._accuracy.items()}
        arms = {
            arm: {name: float(value) for name, value in values.items() if not value.isnan()}
            for arm, values in found.items()
        }
        self._accuracy.clear()
        report_metrics(self, {_PLAN: self._clips}, {_PLAN: arms}, {})

    def _measure(self, batch: Batch) -> None:
        self._check(batch)
        chunk = self.predict_action(batch.observation).to(batch.video.device)
        held = batch.actions[:, :1].expand_as(chunk.actions)
        for arm, actions in (("model", chunk.actions), ("hold_still", held)):
            if arm not in self._accuracy:
                self._accuracy[arm] = ActionAccuracy().to(batch.video.device)
            self._accuracy[arm].update(actions, chunk.valid, batch)


def _unmoved(actions: Float[Tensor, "b t 8"]) -> Float[Tensor, "b t 8"]:
    """A pose that can stand for actions that were not recorded, whose quaternions are zero."""
    return actions.new_tensor([0, 0, 0, 0, 0, 0, 1, 0]).expand_as(actions)

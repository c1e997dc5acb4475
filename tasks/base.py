"""The training loop, validation and testing that all tasks share; subclasses choose plans and outputs."""

from collections.abc import Container, Sequence
from functools import reduce
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.canvas import Canvas, Kind, Plan, blank, joined, plan
from ai_wam.diffusion.solvers import Sampling
from ai_wam.errors import InvalidValue
from ai_wam.types import ActionChunk, Batch, Clip
from ai_wam.utils.number_checks import check_numbers
from ai_wam.utils.seeds import named_generator
from backbones.base import VideoBackbone
from backbones.conditions.prompts import Context
from tasks.decoding.action_head import ActionHead
from tasks.decoding.decoders import readings
from tasks.evaluation.recorded_clips import ClipEvaluation, ClipEvaluator, report_metrics
from tasks.evaluation.sample_videos import PlanErrors, Trials, log_sample_videos
from tasks.metrics.networks import check_names, left_out, load_networks
from tasks.real_time_chunking import Prefix, check_dropin, draw_prefix
from tasks.training.blob_weights import blob_weights
from tasks.training.finite_steps import SeenBatch
from tasks.training.optimized_task import OptimizedTask
from tasks.training.optimizer import (
    AdamW,
    CosineWithWarmup,
    LRSchedulerCallable,
    OptimizerCallable,
    parameter_groups,
)
from tasks.training.plan_mixture import (
    WITHOUT_ACTIONS,
    Lengths,
    by_lengths,
    check_clip,
    draw_plans,
    drop_prompts,
    mixture,
)
from tasks.training.resume_checks import check_same_names
from tasks.world_action_model import WorldActionModel


class WorldActionTask(OptimizedTask, WorldActionModel):
    """A world action model: a backbone, its clip, and the plans it is trained on.

    All tasks share one state_dict, so a checkpoint of any of them loads into the others.

    Args:
        backbone: the video model.
        clip: frames, stride, size and views; data and benchmarks follow it.
        tokenizer: how actions are drawn.
        plans: what is trained, by name, with relative shares; drawn per sample.
        control_plan: the plan by which `predict_action` acts.
        optimizer: of parameter groups; biases, norms and modulation tables have no weight decay.
        lr_scheduler: of that optimizer, stepped with it; the default is a cosine that ends at the trainer's
            last step.
        prompt_dropout: share of samples that train with the empty prompt.
        sampling: steps, guidance and solver of a prediction.
        blob_weight: weight of the loss under the blobs of an action segment, against that of its background;
            1 weights all positions alike.
        prefix: how training and predictions are conditioned on committed actions.
        action_head: a learned decoder on top of the geometric one; trained beside the video model, on its
            estimates, without changing them.
        freeze_backbone: train the action head alone.
        decoder: of the actions: "whole" decodes everything, for pictures too; "geometric" decodes the action
            segments only, with the same poses; "latent" decodes nothing, it reads the poses off the
            latents by a linear map, which is fitted to the codec before the first chunk; "head" is the action
            head. If left out, the head or "whole".
        decoded_frames: video frames of a prediction that are decoded, the present one included; all, if left
            out. Where only a part of each chunk is executed, the rest need not be decoded.
        seed: of everything the task draws: plans, noise levels, noise.
        evaluation: plans and networks of video metrics by which `ai-wam test` evaluates recorded clips.
    """

    default_plans: ClassVar[dict[str, float]] = {}  # of a subclass that is given none
    acts_by: ClassVar[str] = ""  # the control plan of a subclass that takes no other

    def __init__(
        self,
        backbone: VideoBackbone,
        clip: Clip,
        plans: dict[str, float],
        control_plan: str,
        tokenizer: ActionImageTokenizer | None = None,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable = CosineWithWarmup,
        prompt_dropout: float = 0.05,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        blob_weight: float = 1.0,
        prefix: Prefix = Prefix(),  # noqa: B008 - frozen
        decoded_frames: int | None = None,
        action_head: ActionHead | None = None,
        freeze_backbone: bool = False,
        decoder: Literal["whole", "geometric", "head", "latent"] | None = None,
        seed: int = 0,
        evaluation: ClipEvaluation = ClipEvaluation(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(
            backbone,
            clip,
            tokenizer or ActionImageTokenizer(),
            plan(control_plan),
            sampling=sampling,
            prefix=prefix,
            seed=seed,
            action_head=action_head,
            decoder=decoder,
            decoded_frames=decoded_frames,
        )
        self.plans = mixture(plans)
        check_numbers("a task", at_least=0, at_most=1, prompt_dropout=prompt_dropout)
        check_numbers("a task", at_least=1, blob_weight=blob_weight)
        self.blob_weight = blob_weight
        self.set_optimizer(optimizer, lr_scheduler)
        check_dropin(prefix.dropin, backbone.spec, clip.frames)
        self.prompt_dropout = prompt_dropout
        named = evaluation.plans or [chosen.name for chosen, _ in self.plans]
        self.test_plans, self.test_networks = [plan(name) for name in named], evaluation.networks or {}
        check_names(self.test_networks)
        self._evaluators: list[ClipEvaluator] = []  # no submodules: their networks stay out of checkpoints
        self.errors = PlanErrors()
        self.freeze_backbone = freeze_backbone
        if freeze_backbone and action_head is None:
            raise InvalidValue("freeze_backbone needs an action_head, or nothing is trained; set one")
        if freeze_backbone:
            backbone.requires_grad_(False)
        self._sharded = False
        everything = [*(chosen for chosen, _ in self.plans), plan(WITHOUT_ACTIONS)]
        self._canvases = {chosen.lengths: chosen for chosen in everything}

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch: every row by its own plan, rows with equally long segments in one forward."""
        check_clip(batch, self.clip)
        generator = named_generator(self.seed, "train", self.current_epoch, batch_idx, self.global_rank)
        prompts = drop_prompts(batch, self.prompt_dropout, generator)
        drawn = draw_plans(self.plans, batch, generator)
        self._count_plans(drawn)
        groups = by_lengths(drawn)
        elsewhere = self._canvases_of_any_rank(groups)
        total = self._zero_loss()
        for lengths, one in self._canvases.items():
            if lengths in groups:
                total = total + self._group_loss(groups[lengths], batch, prompts, generator)
            elif lengths in elsewhere:
                total = total + self._unused_loss(one, batch)
        total = total / len(batch.keys)
        rows = {chosen.name: [batch.keys[row] for row in rows] for chosen, rows in drawn}
        self.steps.add(SeenBatch(total.detach(), rows))
        self.log("train/loss", total, prog_bar=True, batch_size=len(batch.keys))
        return total

    def _group_loss(
        self,
        group: Sequence[tuple[Plan, list[int]]],
        batch: Batch,
        prompts: Sequence[str],
        generator: torch.Generator,
    ) -> Tensor:
        """Sum of the losses of rows whose canvases can be joined: one forward, whatever they train by."""
        parts, canvases, contexts = [batch.rows(rows) for _, rows in group], [], []
        for (chosen, rows), part in zip(group, parts, strict=True):
            prefix = draw_prefix(self.prefix.dropin, chosen, part, self.backbone.spec, generator)
            canvases.append(self.training_canvas(part, chosen, prefix))
            contexts.append(self._context([prompts[row] for row in rows], part.observation, part.encoded))
        canvas, context = joined(canvases), reduce(Context.joined, contexts)
        u = self.backbone.path.draw(len(canvas.clean), generator).to(self.device)
        noise = torch.randn(canvas.clean.shape, generator=generator).to(self.device)
        weight = None
        if self.blob_weight != 1:
            each = zip(group, parts, canvases, strict=True)
            weight = torch.cat([self._loss_weight(part, chosen, own) for (chosen, _), part, own in each])
        with torch.set_grad_enabled(not self.freeze_backbone):
            loss, estimate, error = self.backbone.loss_and_estimate(canvas, context, u, noise, weight)
        self.logged_means.losses(canvas, u, loss, error)
        total = loss.new_zeros(()) if self.freeze_backbone else loss.sum()
        counts = [len(rows) for _, rows in group]
        results = loss.split(counts), estimate.detach().split(counts)
        for (chosen, rows), part, own, losses, seen in zip(group, parts, canvases, *results, strict=True):
            self.logged_means.add(f"loss_{chosen.name}", losses.sum(), len(rows))
            if self.action_head is not None and chosen.generates_actions:
                corrected = self._head_loss(part, chosen, own, seen).sum()
                self.logged_means.add(f"head_{chosen.name}", corrected, len(rows))
                total = total + corrected
        return total

    def _loss_weight(self, batch: Batch, chosen: Plan, canvas: Canvas) -> Float[Tensor, "b 1 f h w"]:
        """Of every position, by where the blobs of the recorded actions are."""
        cameras, size = self.cameras_of(batch, chosen), self.clip.size
        pixels = self.tokenizer.project(batch.actions, cameras, size) - self.tokenizer.pixel_center + 0.5
        radii = self.tokenizer.blob_radii(size)
        return blob_weights(self.blob_weight, pixels, radii, canvas, self.backbone.spec)

    def _canvases_of_any_rank(self, groups: Container[Lengths]) -> set[Lengths]:
        """Canvases that any process computes in this step; asked only where processes share weights."""
        mesh = self.device_mesh
        if not self._sharded or mesh is None:
            return set()
        mine = torch.tensor([int(each in groups) for each in self._canvases], device=self.device)
        distributed.all_reduce(mine, distributed.ReduceOp.MAX, mesh["data_parallel"].get_group())
        return {each for each, present in zip(self._canvases, mine.tolist(), strict=True) if present}

    def _unused_loss(self, chosen: Plan, batch: Batch) -> Tensor:
        """0 after a forward, since processes that share weights must run the network equally often."""
        row = batch.rows([0])
        canvas = blank(self.training_canvas(row, chosen))
        context = self._context([""], row.observation, row.encoded)
        u = torch.ones(1, device=self.device)
        with torch.set_grad_enabled(not self.freeze_backbone):
            return self.backbone.loss(canvas, context, u, canvas.clean).sum()

    def on_fit_start(self) -> None:
        """Refuse captions that the prompt encoder cannot take, before training begins."""
        self.check_captions(self.backbone.prompts)

    def on_train_start(self) -> None:
        """Refuse a checkpoint with other weights."""
        if self._sharded and self.trainer.ckpt_path is not None:
            check_same_names(self.trainer.ckpt_path, self.state_dict())

    def _count_plans(self, drawn: Sequence[tuple[Plan, list[int]]]) -> None:
        names = [*(chosen.name for chosen, _ in self.plans), WITHOUT_ACTIONS]
        self.logged_means.shares(names, {chosen.name: len(rows) for chosen, rows in drawn})

    def _zero_loss(self) -> Tensor:
        """A loss of 0 with a gradient for the action head, for batches in which no row trains it."""
        unused = [] if self.action_head is None else [p.sum() for p in self.action_head.parameters()]
        return 0 * sum(unused, torch.zeros((), device=self.device))

    def _head_loss(
        self, batch: Batch, chosen: Plan, canvas: Canvas, estimate: Float[Tensor, "b c f h w"]
    ) -> Float[Tensor, "b"]:
        """Loss of the action head on the network's estimates of clean latents."""
        assert self.action_head is not None
        cameras = self.cameras_of(batch, chosen)
        images = self.decode_segments(canvas, estimate, kinds=(Kind.ACTION,))[Kind.ACTION]
        read = self.generated(canvas, estimate, images, cameras, batch.observation).geometric
        actions = self.action_head(canvas, estimate, read, cameras, batch.actions[:, 0])
        loss: Tensor = self.action_head.loss(actions, batch.actions)
        return loss

    # ------------------------------------------------------------------ training set-up

    def configure_model(self) -> None:
        """Shard the backbone where the strategy has a mesh (Lightning's ModelParallelStrategy)."""
        if self.device_mesh is not None and not self._sharded:
            if self.action_head is not None:
                raise InvalidValue(
                    "an action_head is not trained or run sharded; take it off (action_head: null) and train "
                    "it on the trained weights afterwards, or use --trainer.strategy ddp"
                )
            self.backbone.shard(self.device_mesh["data_parallel"])
            # Strict loading would miss what `leave_out_released` left out; `check_same_names` does not.
            self._sharded, self.strict_loading = True, False
        self.backbone.materialize()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything that is trained; norms, biases and modulation tables without weight decay."""
        trained = [self.backbone.denoiser, *([] if self.action_head is None else [self.action_head])]
        return parameter_groups(trained)

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Errors of every plan that was trained, decoder by decoder; sample videos of the first batch."""
        check_clip(batch, self.clip)
        kinds = (Kind.ACTION,) if batch_idx else tuple(Kind)
        for chosen, _ in self.plans:
            if batch_idx and not chosen.generates_actions:
                continue
            cameras = self.cameras_of(batch, chosen)
            canvas, latents = self.generate_for(batch, chosen)
            videos = self.decode_segments(canvas, latents, kinds=kinds)
            if chosen.generates_actions:
                made = self.generated(canvas, latents, videos[Kind.ACTION], cameras, batch.observation)
                self.errors.update(chosen.name, readings(self.decoders, made), batch)
            if batch_idx == 0:
                rate = self.clip.seconds_per_frame
                log_sample_videos(self, chosen.name, batch, videos, self.tokenizer, rate)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's errors."""
        self.log_dict(self.errors.compute(), sync_dist=False)

    def predict_step(self, batch: Batch, batch_idx: int) -> ActionChunk:
        """The policy's actions at the first frame of every sample."""
        check_clip(batch, self.clip)
        return self.predict_action(batch.observation)

    def test_step(self, batch: Trials | Batch, batch_idx: int) -> None:
        """Trials of a benchmark run closed loops; recorded clips are evaluated plan by plan."""
        if isinstance(batch, Trials):
            batch.run(self)
            return
        check_clip(batch, self.clip)
        if not self._evaluators:
            networks = load_networks(self.test_networks, self.clip)
            beside = list(dict.fromkeys(rung.reading for rung in self.decoders.values()))
            beside.remove("geometric")
            self._evaluators = [
                ClipEvaluator(each, self.tokenizer, networks, self.device, beside) for each in self.test_plans
            ]
        for evaluator in self._evaluators:
            cameras = self.cameras_of(batch, evaluator.plan)
            codec = {kind: self.recode(batch, kind, cameras) for kind in evaluator.kinds}
            canvas, latents = self.generate_for(batch, evaluator.plan)
            videos, read = self.decode_segments(canvas, latents), {}
            if evaluator.plan.generates_actions:
                made = self.generated(canvas, latents, videos[Kind.ACTION], cameras, batch.observation)
                read = readings(self.decoders, made)
            evaluator.update(batch, cameras, videos, codec, read)

    def on_test_epoch_start(self) -> None:
        """Drop the metrics of a test that was interrupted."""
        self._evaluators = []

    def on_test_epoch_end(self) -> None:
        """Report on recorded clips; trials report themselves."""
        evaluators, self._evaluators = self._evaluators, []
        if evaluators:
            videos = any(Kind.VIDEO in evaluator.kinds for evaluator in evaluators)
            clips = {each.plan.name: int(each.clips.compute()) for each in evaluators}
            found = {each.plan.name: each.compute() for each in evaluators}
            report_metrics(self, clips, found, left_out(self.test_networks) if videos else {})

"""Action labeling: given the whole observation video, generate the action video."""

from typing import Any, ClassVar

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from tasks.base import WorldActionTask


class ActionLabeling(WorldActionTask):
    """Generates the actions of given videos; in half of the samples the first action is given, too.

    Args:
        backbone: the video model.
        clip: frames, stride, size and views.
        tokenizer: how actions are drawn.
        plans: shares of the plans trained on; labeling and annotation alike if left out.
        control_plan: by which it would act in a benchmark; train that plan too.
        kwargs: the other arguments of `tasks.base.WorldActionTask`.
    """

    default_plans: ClassVar[dict[str, float]] = {"labeling": 0.5, "annotation": 0.5}

    def __init__(
        self,
        backbone: VideoBackbone,
        clip: Clip = Clip(),  # noqa: B008 - frozen
        tokenizer: ActionImageTokenizer | None = None,
        plans: dict[str, float] | None = None,
        control_plan: str = "policy",
        **kwargs: Any,
    ) -> None:
        shares = plans or self.default_plans
        super().__init__(backbone, clip, shares, control_plan=control_plan, tokenizer=tokenizer, **kwargs)

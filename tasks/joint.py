"""Joint video-action generation, and with it the whole mixture of plans."""

from typing import Any, ClassVar, Literal

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from tasks.base import WorldActionTask

# arXiv 2604.06168, section 4
MIXTURE = {"joint": 0.85, "labeling": 0.05, "action_conditioned": 0.05, "video_only": 0.05}


class JointGeneration(WorldActionTask):
    """Generates what the robot will see and do on one canvas; trained on the paper's mixture by default.

    Args:
        backbone: the video model.
        clip: frames, stride, size and views.
        tokenizer: how actions are drawn.
        plans: shares of the mixture.
        control_plan: "joint" generates the observation while acting; "policy" generates actions only.
        kwargs: the other arguments of `tasks.base.WorldActionTask`.
    """

    default_plans: ClassVar[dict[str, float]] = MIXTURE

    def __init__(
        self,
        backbone: VideoBackbone,
        clip: Clip = Clip(),  # noqa: B008 - frozen
        tokenizer: ActionImageTokenizer | None = None,
        plans: dict[str, float] | None = None,
        control_plan: Literal["joint", "policy"] = "joint",
        **kwargs: Any,
    ) -> None:
        chosen = plans or self.default_plans
        super().__init__(backbone, clip, chosen, control_plan=control_plan, tokenizer=tokenizer, **kwargs)

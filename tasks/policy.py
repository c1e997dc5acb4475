"""Policy control: given the present frame and pose, generate the action video only."""

from typing import Any, ClassVar

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from tasks.base import WorldActionTask


class PolicyControl(WorldActionTask):
    """Generates actions only: observation segments keep their first latent frame, so the canvas is shorter.

    Args:
        backbone: the video model.
        clip: frames, stride, size and views.
        tokenizer: how actions are drawn.
        plans: shares of the plans trained on; the policy plan alone if left out.
        kwargs: the other arguments of `tasks.base.WorldActionTask`.
    """

    default_plans: ClassVar[dict[str, float]] = {"policy": 1.0}
    acts_by: ClassVar[str] = "policy"

    def __init__(
        self,
        backbone: VideoBackbone,
        clip: Clip = Clip(),  # noqa: B008 - frozen
        tokenizer: ActionImageTokenizer | None = None,
        plans: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone, clip, plans or self.default_plans, self.acts_by, tokenizer=tokenizer, **kwargs
        )

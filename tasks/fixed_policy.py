"""A policy without parameters as a LightningModule, so that `ai-wam test` runs without a model."""

from collections.abc import Sequence

from lightning import LightningModule

from ai_wam.types import ActionChunk, ChecksClip, Clip, Observation, Policy
from tasks.evaluation.sample_videos import Trials


class FixedPolicy(LightningModule):
    """Wraps any policy: an expert, a replay, hold-still, a client of a remote model.

    Args:
        policy: what acts.
        clip: views, size and rate of the observations; the policy need not use them.

    Raises:
        ValueError: the policy takes other clips.
    """

    def __init__(self, policy: Policy, clip: Clip | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.clip = clip or Clip()
        if isinstance(policy, ChecksClip):
            policy.check_clip(self.clip)

    def reset(self, episodes: Sequence[str]) -> None:
        """Episodes are about to begin."""
        self.policy.reset(episodes)

    def predict_action(self, observation: Observation) -> ActionChunk:
        """The policy's next actions."""
        return self.policy.predict_action(observation)

    def test_step(self, batch: Trials, batch_idx: int) -> None:
        """Run the policy on a batch of trials."""
        batch.run(self)

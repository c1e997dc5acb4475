"""The load on a served policy is counted, and answers that are another request's are seen."""

from dataclasses import replace
from typing import Any

import pytest
from serving_thread import served, trained_policy

from benchmarks.speed import serve


class MixedUp:
    """A policy that gives every row of a batch the first one's actions."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def reset(self, episodes: Any) -> None:
        self.policy.reset(episodes)

    def predict_action(self, observation: Any) -> Any:
        chunk = self.policy.predict_action(observation)
        return replace(chunk, actions=chunk.actions[:1].expand_as(chunk.actions))


@pytest.mark.parametrize("mixed_up", [False, True])
def test_every_answer_is_compared_with_the_one_to_its_own_request(mixed_up: bool):
    policy: Any = MixedUp(trained_policy()) if mixed_up else trained_policy()
    described = {"image_size": [32, 32], "views": ["front", "left_shoulder"]}
    with served(policy, described=described) as found:
        load = serve.measured(found.address, lambda: 1.0, requests=24, clients=4)
    assert (len(load.waits), load.lost) == (24, 0)
    assert (load.wrong > 0) == mixed_up
    assert load.megabytes == (1.0, 1.0)
    assert load.per_second > 0


@pytest.mark.slow
def test_load_and_faults_are_tried_on_processes(capsys: pytest.CaptureFixture[str]):
    serve.report(requests=32, unbatched_requests=16, clients=4)
    lines = capsys.readouterr().out.splitlines()
    names = [line[:26].strip() for line in lines[6:]]
    assert names[:3] == ["malformed bytes", "wrong shapes", "NaN"]
    assert names[-1] == "server killed, restarted"

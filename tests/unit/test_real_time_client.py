"""Acting while the next chunk is computed: what is committed, where chunks take over, and what is late."""

import threading
from concurrent.futures import wait
from dataclasses import replace

import numpy as np
import pytest
import torch
from serving_thread import CLIP, PROMPT, STATE, cameras, frame, images, served, state, trained_policy

from ai_wam.client import Client, ConnectionLost, Observed, RealTimeControl
from ai_wam.errors import InvalidValue
from ai_wam.types import ActionChunk, Committed, Observation


class Climbing:
    """Chunk k is k millimetres to the side, action a of it a metres up; answers when it is let."""

    def __init__(self):
        self.seen, self.let, self.invalid = [], threading.Event(), False
        self.let.set()

    def reset(self, episodes):
        pass

    def predict_action(self, observation):
        self.let.wait(10)
        actions = torch.from_numpy(STATE).float().repeat(1, 8, 1)
        actions[..., 1] = 0.001 * len(self.seen)
        actions[..., 2] = torch.arange(1, 9)
        self.seen.append(observation)
        valid = torch.ones(1, 8, dtype=torch.bool)
        valid[:, 5] = not self.invalid
        return ActionChunk(actions, valid, valid.float(), 0.2, {})


def seen(seed=0):
    return Observed(images(seed), cameras(), state(seed))


def steps(control, count, answered=True):
    made = []
    for _ in range(count):
        if answered and control._answer is not None:
            wait([control._answer])
        made.append(control.step(seen))
    return made


@pytest.fixture
def climbing():
    policy = Climbing()
    with served(policy) as found, Client(found.address) as client:
        yield policy, client
        policy.let.set()


def test_committed_actions_are_sent_and_carried_out_before_the_new_chunk(climbing):
    policy, client = climbing
    control = RealTimeControl(client, PROMPT, execute=4, prefix=4)
    control.start(seen)
    made = steps(control, 16)
    control.close()
    sides = [round(1000 * step.action[1]) for step in made]
    heights = [step.action[2] for step in made]
    assert sides == [0] * 8 + [1] * 4 + [2] * 4
    assert heights == [1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8]
    assert [round(float(each.seconds[0]), 3) for each in policy.seen] == [0, 0.8, 1.6, 2.4]
    first, *later = [each.committed for each in policy.seen]
    assert first is None
    np.testing.assert_allclose(later[0].actions[0, :, 2], [5, 6, 7, 8])
    np.testing.assert_allclose(later[1].actions[0, :, 2], [5, 6, 7, 8])
    np.testing.assert_allclose(later[1].actions[0, :, 1], 0.001, atol=1e-6)
    # Of chunk 0 the 8th action was the last one committed; chunk 1 has its 4th one there: 4 m lower.
    expected = (pytest.approx(np.hypot(4000, 1), rel=1e-6), pytest.approx(0, abs=0.1))
    assert control.seams == [expected] * 3
    assert [step.seam is not None for step in made].count(True) == 3
    assert control.late == 0


def test_a_served_model_continues_what_a_robot_carries_out():
    policy = trained_policy()
    with served(policy) as found, Client(found.address) as client:
        client.reset("one")
        control = RealTimeControl(client, PROMPT, execute=4, prefix=4)
        control.start(seen)
        made = np.stack([step.action for step in steps(control, 12)])
        control.close()

    def predicted(seconds, committed=None):
        seen_then = replace(frame(), seconds=seconds)
        observation = Observation.from_frames([seen_then], [PROMPT], ["one"], CLIP)
        if committed is not None:
            valid = torch.ones(1, 4, dtype=torch.bool)
            observation = replace(observation, committed=Committed(committed[None], valid))
        return policy.predict_action(observation)

    first = predicted(0.0)
    assert first.valid.all()
    np.testing.assert_array_equal(made[:8], first.actions[0].double())
    second = predicted(0.8, torch.from_numpy(made[4:8]).float())
    assert second.valid.all()
    np.testing.assert_array_equal(made[8:], second.actions[0, 4:].double())


def test_a_late_chunk_takes_over_where_the_robot_is(climbing):
    policy, client = climbing
    control = RealTimeControl(client, PROMPT, execute=4, prefix=2, condition=False)
    control.start(seen)
    policy.let.clear()
    made = steps(control, 9, answered=False)  # asked after 4 actions; 8 of the chunk are there
    assert [step.late for step in made] == [False] * 8 + [True]
    np.testing.assert_array_equal(made[8].action, made[7].action)
    policy.let.set()
    (next_one,) = steps(control, 1)
    control.close()
    assert next_one.action[2] == 6  # the 6th action after the observation, which was made 4 actions in
    assert round(1000 * next_one.action[1]) == 1
    assert next_one.seam == (pytest.approx(np.hypot(3000, 1), rel=1e-6), pytest.approx(0, abs=0.1))
    assert control.late == 1
    assert policy.seen[1].committed is None


def test_an_invalid_action_is_replaced_by_the_one_before(climbing):
    policy, client = climbing
    policy.invalid = True
    control = RealTimeControl(client, PROMPT, execute=8, prefix=0)
    control.start(seen)
    assert [step.action[2] for step in steps(control, 8)] == [1, 2, 3, 4, 5, 5, 7, 8]
    control.close()


def test_a_lost_connection_is_said_at_the_next_step_and_a_new_one_goes_on():
    policy = Climbing()
    with served(policy) as found:
        client = Client(found.address)
        control = RealTimeControl(client, PROMPT, execute=4, prefix=4)
        control.start(seen)
        steps(control, 4)
        policy.let.clear()
        control.step(seen)
        (connection,) = found.server._busy
        found.loop.call_soon_threadsafe(connection.transport.abort)
        wait([control._answer])
        with pytest.raises(ConnectionLost, match=r"an answer may be lost; call connect\(\) and ask again"):
            control.step(seen)
        policy.let.set()
        client.connect()
        made = steps(control, 6)
        control.close()
        client.close()
    # Three actions were left; the new chunk's fourth one is due behind them.
    assert [step.action[2] for step in made] == [6, 7, 8, 4, 5, 6]
    assert not any(step.late for step in made)
    (again,) = [each for each in policy.seen if round(float(each.seconds[0]), 3) == 1.0]
    assert again.committed is None  # three are no prefix that this policy takes


@pytest.mark.parametrize(
    ("execute", "prefix", "said"),
    [
        (0, 4, "execute is 0 and prefix 4: execute is at least 1, and together they are at most 8"),
        (5, 4, "execute is 5 and prefix 4"),
        (4, 3, r"prefix is 3; this policy takes \[4\]; choose one of them, or condition=False"),
    ],
)
def test_numbers_that_a_chunk_cannot_have_are_refused(climbing, execute, prefix, said):
    with pytest.raises(InvalidValue, match=said):
        RealTimeControl(climbing[1], PROMPT, execute, prefix)

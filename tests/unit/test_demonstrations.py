"""Demonstrations: an episode source made of a simulator's experts."""

import pickle
import re
from collections import Counter

import numpy as np
import pytest

from ai_wam.episodes import EpisodeSource, Frame
from benchmarks.demonstrations import Demonstrations
from benchmarks.simulator import Simulator, SimulatorCrash, StepResult, Trial
from benchmarks.simulators.tabletop.simulator import Tabletop


class Clumsy:
    """A world of one number: the expert adds one per step, and falls short in some scenes of every twenty."""

    control_hz, cameras = 20.0, ()

    def __init__(self, clumsy=0):
        self.clumsy, self.value, self.trial = clumsy, 0.0, None

    def tasks(self):
        return {"count": 2}

    def reset(self, trial):
        self.trial, self.value = trial, 0.0
        return ("count to ten",)

    def scene(self):
        return str(self.trial.index)

    def versions(self):
        return {}

    def observe(self, views=None):
        return Frame({}, self.pose(), self.value / self.control_hz)

    def pose(self):
        return np.array([self.value, 0, 0, 0, 1, 0, 0, 0.5])

    def step(self, action):
        self.value = float(action[0])
        return StepResult(success=self.value >= 10, failed=False, reached=True)

    def demonstrate(self):
        goal = 9 if self.trial.index % 20 < self.clumsy else 10
        for value in range(1, goal + 1):
            yield np.array([value, 0, 0, 0, 1, 0, 0, 0.25])

    def diagnostics(self):
        return {}

    def close(self):
        pass


@pytest.fixture(scope="module")
def reach():
    simulator = Tabletop(rig="framed", image_size=(24, 24), views=("front", "wrist"), randomise_start=0.5)
    yield Demonstrations(simulator, ["reach_target"], episodes_per_task=20, hold_seconds=0.4)
    simulator.close()


def test_is_an_episode_source(reach):
    assert isinstance(reach, EpisodeSource)
    assert isinstance(Clumsy(), Simulator)
    assert len(reach) == 20


def test_variations_take_turns_and_trials_are_unique(reach):
    trials = [reach.trial(index, attempt) for index in range(20) for attempt in range(20)]
    assert len({trial.id for trial in trials}) == len(trials)
    assert [reach.trial(index).variation for index in range(8)] == [0, 1, 2, 3, 4, 5, 0, 1]
    assert {trial.split for trial in trials} == {"train"}


def test_tasks_take_turns():
    source = Demonstrations(Tabletop(), episodes_per_task=2)
    assert Counter(source.trial(index).task for index in range(len(source))) == dict.fromkeys(source.tasks, 2)
    assert len({source.trial(index).task for index in range(len(source.tasks))}) == len(source.tasks)


def test_episode_holds_the_achieved_poses_of_a_reach(reach):
    episode = reach[2]
    frames = list(episode.frames)
    seconds = [frame.seconds for frame in frames]
    np.testing.assert_allclose(seconds, np.arange(len(frames)) / 5.0)
    assert episode.hz == 5.0
    assert re.fullmatch(r"[A-Za-z0-9_-]+", episode.key)
    assert "blue" in episode.instructions[0]
    assert list(frames[0].views) == ["front", "wrist"]
    reach.simulator.reset(reach.trial(2))
    goal = list(reach.simulator.demonstrate())[-1]
    np.testing.assert_allclose(frames[-1].action[:3], goal[:3], atol=0.002)
    assert np.linalg.norm(frames[0].action[:3] - goal[:3]) > 0.1
    assert {frame.action[7] for frame in frames} == {1.0}


def test_provenance_says_where_it_comes_from(reach):
    episode = reach[3]
    trial = Trial("reach_target", 3, 0, "train")
    assert episode.provenance == {
        "source": "demonstration",
        "simulator": "benchmarks.simulators.tabletop.simulator.Tabletop",
        **reach.simulator.settings,
        "task": "reach_target",
        "variation": 3,
        "trial": trial.id,
        "seed": trial.seed,
        "attempts": 1,
    }
    assert episode.provenance["rig"] == "framed"


def test_episode_depends_on_its_number_alone(reach):
    forwards = [reach[index] for index in (4, 5)]
    other = pickle.loads(pickle.dumps(reach))
    backwards = [other[index] for index in (5, 4)][::-1]
    other.simulator.close()
    for one, two in zip(forwards, backwards, strict=True):
        assert (one.key, one.instructions, one.provenance) == (two.key, two.instructions, two.provenance)
        for a, b in zip(one.frames, two.frames, strict=True):
            np.testing.assert_array_equal(a.action, b.action)
            for name in a.views:
                np.testing.assert_array_equal(a.views[name].image, b.views[name].image)


def test_hold_is_recorded_to_a_whole_frame_with_the_commanded_openness():
    source = Demonstrations(Clumsy(), episodes_per_task=1, record_hz=5.0, hold_seconds=0.3)
    frames = list(source[0].frames)
    # ten steps and six of holding: sixteen, a multiple of four
    np.testing.assert_array_equal([frame.action[0] for frame in frames], [0, 4, 8, 10, 10])
    np.testing.assert_array_equal([frame.action[7] for frame in frames], [0.5, 0.25, 0.25, 0.25, 0.25])


def test_failed_attempts_are_replaced_and_counted():
    source = Demonstrations(Clumsy(clumsy=3), episodes_per_task=4)
    episode = source[2]
    assert episode.provenance["attempts"] == 4
    assert episode.provenance["seed"] == source.trial(2, attempt=3).seed
    assert episode.key == source.trial(2, attempt=3).id


def test_expert_that_always_fails_is_told():
    with pytest.raises(RuntimeError, match=r"'count' \(variation 1\) failed in all 20 scenes of episode 1"):
        Demonstrations(Clumsy(clumsy=20))[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["juggle"]}, r"'juggle'.*count"),
        ({"record_hz": 3.0}, r"record_hz 3.0 must divide.*20.0"),
        ({"record_hz": 0.0}, r"record_hz 0.0"),
        ({"episodes_per_task": 0}, r"episodes_per_task 0"),
        ({"max_attempts": 0}, r"max_attempts 0"),
        ({"hold_seconds": -1.0}, r"hold_seconds -1.0"),
    ],
)
def test_bad_setting_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Demonstrations(Clumsy(), **arguments)


@pytest.mark.parametrize("index", [-1, 20])
def test_no_such_episode(reach, index):
    with pytest.raises(IndexError, match=f"episode {index} of 20"):
        reach[index]


class Crashing(Clumsy):
    def step(self, action):
        if self.trial.index % 20 < self.clumsy and self.value == 3:
            raise SimulatorCrash("the process died of SIGSEGV")
        return super().step(action)


def test_a_crash_costs_an_attempt_and_too_many_of_them_are_told():
    episode = Demonstrations(Crashing(2), episodes_per_task=1)[0]
    assert (episode.provenance["attempts"], len(episode.frames)) == (3, 8)
    with pytest.raises(RuntimeError, match="failed in all 3 scenes") as caught:
        Demonstrations(Crashing(20), episodes_per_task=1, max_attempts=3)[0]
    assert "SIGSEGV" in str(caught.value.__cause__)

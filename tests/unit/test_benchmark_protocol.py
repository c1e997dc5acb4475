import dataclasses
import json
from dataclasses import dataclass

import pytest

from ai_wam.types import Clip
from benchmarks.evaluation.protocol import EvaluationProtocol, canonical, configuration
from benchmarks.simulator import Simulator, Trial
from benchmarks.simulators.tabletop.simulator import Tabletop

SIMULATOR = Tabletop(rig="framed", image_size=(32, 32))
CLIP = Clip(size=(32, 32))
PROTOCOL = EvaluationProtocol(execution="receding", tasks=("reach_target",))


def test_the_tabletop_is_a_simulator():
    assert isinstance(SIMULATOR, Simulator)


@pytest.mark.parametrize(
    "change",
    [
        {"execution": "one_shot"},
        {"execute_frames": 2},
        {"max_seconds": 3.0},
        {"trials_per_task": 4},
        {"split": "validation"},
        {"max_invalid_frames": 0},
        {"max_unreached_streak": 1},
        {"min_ceiling": 0.9},
    ],
)
def test_every_rule_changes_the_hash(change):
    assert dataclasses.replace(PROTOCOL, **change).hash(SIMULATOR, CLIP) != PROTOCOL.hash(SIMULATOR, CLIP)


@pytest.mark.parametrize(
    "change",
    [{"views": ("front",)}, {"size": (64, 64)}, {"stride": 2}, {"control_hz": 10.0}],
    ids=lambda c: next(iter(c)),
)
def test_the_clip_changes_the_hash_but_not_its_length(change):
    reference = PROTOCOL.hash(SIMULATOR, CLIP)
    assert PROTOCOL.hash(SIMULATOR, dataclasses.replace(CLIP, **change)) != reference
    assert PROTOCOL.hash(SIMULATOR, dataclasses.replace(CLIP, frames=41)) == reference


def test_the_simulator_changes_the_hash_and_its_state_does_not():
    reference = PROTOCOL.hash(SIMULATOR, CLIP)
    assert PROTOCOL.hash(Tabletop(rig="wide", image_size=(32, 32)), CLIP) != reference
    used = Tabletop(rig="framed", image_size=(32, 32))
    used.reset(Trial("reach_target", 0, 0))
    assert PROTOCOL.hash(used, CLIP) == reference
    used.close()


def test_more_variations_are_another_protocol_and_another_order_of_tasks_is_not(monkeypatch):
    both = dataclasses.replace(PROTOCOL, tasks=("reach_target", "close_drawer"))
    swapped = dataclasses.replace(PROTOCOL, tasks=("close_drawer", "reach_target"))
    assert both.hash(SIMULATOR, CLIP) == swapped.hash(SIMULATOR, CLIP)
    before = both.hash(SIMULATOR, CLIP)
    monkeypatch.setattr(SIMULATOR, "tasks", lambda: {"reach_target": 99, "close_drawer": 1}, raising=False)
    assert both.hash(SIMULATOR, CLIP) != before


def test_rules_that_do_not_apply_are_left_out():
    one_shot = EvaluationProtocol(execution="one_shot", tasks=("reach_target",))
    assert dataclasses.replace(one_shot, execute_frames=7).hash(SIMULATOR, CLIP) == one_shot.hash(
        SIMULATOR, CLIP
    )
    assert "execute_frames" not in one_shot.describe(SIMULATOR, CLIP)


def test_chunk_length_is_a_rule_of_one_shot_alone():
    """In one shot it decides how much is executed before the pose is held."""
    longer = dataclasses.replace(CLIP, frames=CLIP.frames + 8)
    one_shot = EvaluationProtocol(execution="one_shot", tasks=("reach_target",))
    assert one_shot.hash(SIMULATOR, longer) != one_shot.hash(SIMULATOR, CLIP)
    receding = dataclasses.replace(one_shot, execution="receding")
    assert receding.hash(SIMULATOR, longer) == receding.hash(SIMULATOR, CLIP)


@pytest.mark.parametrize("changed", ["bodies", "assets"])
def test_a_changed_scene_is_another_protocol_for_its_own_task_only(monkeypatch, changed):
    hashes = {name: EvaluationProtocol(tasks=(name,)).hash for name in ("close_drawer", "reach_target")}
    before = {name: made(SIMULATOR, CLIP) for name, made in hashes.items()}
    drawer = type(SIMULATOR._task("close_drawer"))
    original = getattr(drawer, changed)
    monkeypatch.setattr(drawer, changed, lambda self: original(self) + "<!-- moved -->")
    assert hashes["close_drawer"](SIMULATOR, CLIP) != before["close_drawer"]
    assert hashes["reach_target"](SIMULATOR, CLIP) == before["reach_target"]


def test_the_description_is_json_and_hashes_canonically():
    described = PROTOCOL.describe(SIMULATOR, CLIP)
    assert json.loads(json.dumps(described)) == described
    assert described["simulator"]["init_args"]["rig"] == "framed"
    assert canonical({"b": 1, "a": [1.5]}) == '{"a":[1.5],"b":1}'


def test_no_tasks_means_all_of_the_simulators():
    everything = EvaluationProtocol(trials_per_task=1)
    assert everything.task_names(SIMULATOR) == tuple(SIMULATOR.tasks())
    named = EvaluationProtocol(trials_per_task=1, tasks=tuple(SIMULATOR.tasks()))
    assert named.hash(SIMULATOR, CLIP) == everything.hash(SIMULATOR, CLIP)


def test_trials_spread_over_variations_and_have_seeds_of_their_own():
    variations = SIMULATOR.tasks()["reach_target"]
    trials = dataclasses.replace(PROTOCOL, trials_per_task=2 * variations + 1).trials(SIMULATOR)
    assert [trial.variation for trial in trials[:variations]] == list(range(variations))
    assert trials[variations] == Trial("reach_target", 0, 1, "test")
    assert len({trial.seed for trial in trials}) == len(trials)
    assert not {trial.seed for trial in trials} & {dataclasses.replace(t, split="train").seed for t in trials}


def test_a_trial_is_found_again_by_its_name():
    trial = Trial("close-the_drawer", 12, 123456, "validation")
    assert Trial.from_id(trial.id) == trial
    with pytest.raises(ValueError, match="'episode_7' is no trial's name"):
        Trial.from_id("episode_7")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("execute_frames", 0), ("max_seconds", 0.0), ("trials_per_task", 0), ("min_ceiling", 1.1)],
)
def test_rules_out_of_range_are_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=argument):
        EvaluationProtocol(**{argument: value})


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown tasks \['reach_targets'\].*reach_target"):
        EvaluationProtocol(tasks=("reach_targets",)).trials(SIMULATOR)


class Forgetful:
    def __init__(self, colour: str) -> None:
        pass


class Portable:
    incidental = ("folder",)

    def __init__(self, colour: str, folder: str) -> None:
        self.colour = colour


def test_what_cannot_change_a_result_is_not_described():
    assert configuration(Portable("red", "/here"))["init_args"] == {"colour": "red"}


@dataclass
class Holder:
    thing: object


def test_a_component_that_cannot_be_described_is_refused():
    with pytest.raises(ValueError, match="does not keep its constructor argument 'colour'"):
        configuration(Forgetful("red"))
    with pytest.raises(ValueError, match=r"Holder\.thing is a set"):
        configuration(Holder({1}))

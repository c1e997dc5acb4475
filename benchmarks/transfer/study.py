"""What the study of transfer trains and tests, and the commands that do it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_CAMERAS = "--source.init_args.shift=configs/shift/train_cameras.yaml"
_WIDE_CAMERAS = "--source.init_args.shift=configs/shift/train_cameras_wide.yaml"
_WIDE = "--source.init_args.simulator.init_args.rig=wide"
_REACH, _ALL_TASKS = "configs/collect/reach_target.yaml", "configs/collect/tabletop_framed.yaml"


@dataclass(frozen=True)
class DataSet:
    """Demonstrations.

    Attributes:
        config: of `ai-wam collect`.
        words: further words of the command.
        episodes: of each task, to train and to validate.
    """

    config: str
    words: tuple[str, ...] = ()
    episodes: tuple[int, int] = (4000, 80)


@dataclass(frozen=True)
class Training:
    """One model, trained once per seed, and its test.

    Attributes:
        title: in the page's tables.
        data: name of the demonstrations.
        config: of `ai-wam fit`.
        words: further words of the command.
        benchmark: what it is tested on.
        points: of a sweep over shifts; None for a plain test.
    """

    title: str
    data: str
    config: str
    words: tuple[str, ...] = ()
    benchmark: str = "configs/benchmark/reach_target.yaml"
    points: str | None = "configs/sweep/reach_target.yaml"


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: unique; of its log and of the record that it is finished.
        words: of `ai-wam`, with paths relative to the study's folder.
        needs: names of the jobs before it.
        checkpoint: which the job resumes from, where an interrupted one left it.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    checkpoint: str | None = None


# Where the shipped recipes have changed since the study was made.
_STARTS = "--source.init_args.simulator.init_args.randomise_start=0.5"
_AS_THEN = (
    "--data.window_every=1",
    "--data.window_least=1",
    "--model.optimizer.init_args.momentum=0.95",
)

DATA: Mapping[str, DataSet] = {
    "one_rig": DataSet(_REACH, (_STARTS,)),
    "cameras": DataSet(_REACH, (_STARTS, _CAMERAS)),
    "wide": DataSet(_REACH, (_STARTS, _WIDE)),
    "wide_cameras": DataSet(_REACH, (_STARTS, _WIDE, _WIDE_CAMERAS)),
    "tabletop": DataSet(_ALL_TASKS, episodes=(1000, 20)),
}

# The baseline's steps of twice the batch take half as many minutes again.
_POLICY = ("configs/quickstart.yaml", ("--trainer.max_steps=2500", *_AS_THEN))
# The spheres of the wide rig are half as large.
_WIDE_POLICY = ("configs/quickstart.yaml", ("--trainer.max_steps=3500", *_AS_THEN))
_BASELINE = ("configs/quickstart_diffusion_policy.yaml", ("--trainer.max_steps=3400",))
_BLIND, _BASELINE_BLIND = "--model.backbone.init_args.rays=false", "--model.encoder.init_args.rays=false"
_WIDE_TEST = "configs/benchmark/reach_target_wide.yaml"
_TABLETOP_TEST = "configs/benchmark/tabletop_framed.yaml"


def _with(recipe: tuple[str, tuple[str, ...]], *words: str) -> tuple[str, tuple[str, ...]]:
    return recipe[0], (*recipe[1], *words)


TRAININGS: Mapping[str, Training] = {
    "one_rig": Training("one pair of cameras", "one_rig", *_POLICY),
    "one_rig_no_rays": Training("one pair, without rays", "one_rig", *_with(_POLICY, _BLIND)),
    "cameras": Training("cameras drawn per episode", "cameras", *_POLICY),
    "cameras_no_rays": Training("cameras drawn, without rays", "cameras", *_with(_POLICY, _BLIND)),
    "baseline_one_rig": Training("diffusion policy, one pair", "one_rig", *_BASELINE),
    "baseline_one_rig_no_rays": Training(
        "diffusion policy, one pair, without rays", "one_rig", *_with(_BASELINE, _BASELINE_BLIND)
    ),
    "baseline_cameras": Training("diffusion policy, cameras drawn", "cameras", *_BASELINE),
    "baseline_cameras_no_rays": Training(
        "diffusion policy, cameras drawn, without rays", "cameras", *_with(_BASELINE, _BASELINE_BLIND)
    ),
    "wide": Training("wide rig", "wide", *_WIDE_POLICY, benchmark=_WIDE_TEST, points=None),
    "wide_cameras": Training(
        "wide rig, cameras drawn", "wide_cameras", *_WIDE_POLICY, benchmark=_WIDE_TEST, points=None
    ),
    "tabletop": Training(
        "one policy, four tasks", "tabletop", "configs/tabletop.yaml", benchmark=_TABLETOP_TEST, points=None
    ),
    "baseline_tabletop": Training(
        "diffusion policy, four tasks",
        "tabletop",
        "configs/quickstart_diffusion_policy.yaml",
        ("--trainer.max_steps=6800", "--trainer.val_check_interval=1700"),
        benchmark=_TABLETOP_TEST,
        points=None,
    ),
}


def run_name(training: str, seed: int) -> str:
    """Name of one training: of its folders of checkpoints and of results."""
    return f"{training}-s{seed}"


def jobs(trainings: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All commands of some trainings, each after those it needs."""
    data = dict.fromkeys(TRAININGS[name].data for name in trainings)
    found = [job for name in data for job in _collecting(name)]
    for seed in seeds:
        for name in trainings:
            found += _training_and_testing(name, seed)
    return found


def _collecting(name: str) -> Iterator[Job]:
    chosen = DATA[name]
    for split, episodes in zip(("train", "val"), chosen.episodes, strict=True):
        own = (f"--source.init_args.split={split}", f"--source.init_args.episodes_per_task={episodes}")
        out = (f"--out=data/{name}/{split}", "--workers=1")
        yield Job(f"data-{name}-{split}", ("collect", f"--config={chosen.config}", *chosen.words, *own, *out))


def _training_and_testing(name: str, seed: int) -> Iterator[Job]:
    chosen, run = TRAININGS[name], run_name(name, seed)
    shards = [f"data-{chosen.data}-{split}" for split in ("train", "val")]
    checkpoint = f"fits/{run}/fit/checkpoints/last.ckpt"
    data = (f"--data.train=data/{chosen.data}/train", f"--data.val=data/{chosen.data}/val")
    own = (f"--seed_everything={seed}", f"--trainer.logger.init_args.save_dir=fits/{run}")
    fit = ("fit", f"--config={chosen.config}", *chosen.words, *data, *own)
    yield Job(f"fit-{run}", fit, tuple(shards), checkpoint)
    test = (f"--ckpt_path={checkpoint}", f"--data={chosen.benchmark}", "--trainer.logger=false")
    words: tuple[str, ...]
    if chosen.points is None:
        words = ("test", *test, f"--data.out=results/{run}")
    else:
        words = ("sweep", f"--points={chosen.points}", *test, "--data.videos=4", f"--out=results/{run}")
    yield Job(f"test-{run}", words, (f"fit-{run}",))

"""`ai-wam demo`: a policy that comes with the package acts, without any training."""

import os
import webbrowser
from importlib.resources import files
from pathlib import Path

from ai_wam.cli.quickstart import ON_CPU, run_step
from ai_wam.files.packed_policy import unpack
from benchmarks.evaluation.provenance import content_hash
from benchmarks.simulators.opengl_platform import headless

_POLICY, _POINTS = "policy.safetensors", "configs/sweep/demo.yaml"
_BENCHMARK = "configs/benchmark/reach_target.yaml"


def demo(out: str = "runs/demo", trials: int = 10, threads: int = 1, show: bool = True) -> None:
    """Let a trained policy reach for spheres in unseen scenes, and through cameras it never saw.

    The policy, a tiny Wan that learned through one pair of cameras, comes with the package (2.7 MB). It acts
    under every shift of configs/sweep/demo.yaml by one `ai-wam sweep`, which is printed before it runs, and
    resumes if it was interrupted.

    Args:
        out: folder for everything that is written.
        trials: unseen scenes under each shift.
        threads: CPU threads; two are a little faster on an idle machine, and much slower beside other work.
        show: open the report in a browser, where there is one.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    packed, sweep = Path(str(files("ai_wam.demo"))) / _POLICY, folder / "sweep"
    checkpoint = folder / f"policy-{content_hash(packed)[:8]}.ckpt"  # another version's is another file
    if not checkpoint.exists():
        unpack(packed, checkpoint)
    count = ["--data.benchmark.init_args.protocol.trials_per_task", str(trials), "--data.videos", str(trials)]
    what = ["--points", _POINTS, "--ckpt_path", str(checkpoint), "--data", _BENCHMARK]
    spent = run_step("sweep", *what, *count, *ON_CPU, "--out", str(sweep), threads=threads)
    page = (sweep / "sweep.html").resolve()
    print(f"\n{spent.seconds:.0f} seconds; report: {page}")
    if show and not headless(os.environ):  # where a browser would open in the terminal
        webbrowser.open(page.as_uri())

"""`ai-wam env`: what a report of an issue should say of the machine."""

import os
from collections.abc import Iterator

import av
import torch

from ai_wam.cli.quickstart import machine_speed
from benchmarks.evaluation.provenance import versions
from benchmarks.simulators.opengl_platform import choose_platform, egl_devices, obstacle, osmesa
from benchmarks.simulators.rlbench.simulator import PYTHON

_PACKAGES = (
    *("torch", "torchvision", "lightning", "diffusers", "transformers", "timm", "torchmetrics", "webdataset"),
    *("jsonargparse", "numpy", "av", "mujoco", "peft", "ray", "metaworld", "pyarrow", "h5py"),
    *("opencv-python-headless", "rerun-sdk"),
)
_ENCODERS = ("libx264", "ffv1")  # of recordings
_VARIABLES = (
    *("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY", "COPPELIASIM_ROOT", PYTHON, "OMP_NUM_THREADS"),
    "CUDA_VISIBLE_DEVICES",
)


def env() -> None:
    """Print versions, processors, GPUs, graphics and video encoders; nothing is changed or downloaded.

    Paths are left out, except those in environment variables that are printed because they decide something.
    """
    for name, text in _lines():
        print(f"{name:<24}{text}")


def _lines() -> Iterator[tuple[str, str]]:
    found = versions(("ai-wam", *_PACKAGES))
    yield "ai-wam", f"{found.get('ai-wam', 'not installed')}, commit {found.get('commit', 'unknown')}"
    yield "python", f"{found['python']}, {found['platform']}"
    for name in _PACKAGES:
        yield name, found.get(name, "not installed")
    yield "processors", f"{os.cpu_count()}, {_memory()}"
    yield "speed", machine_speed()
    yield "GPU", ", ".join(_gpus()) or "none that torch can use"
    yield "OpenGL", _graphics()
    codecs = av.codecs_available
    yield "encoders", ", ".join(f"{name} {'yes' if name in codecs else 'no'}" for name in _ENCODERS)
    for name in _VARIABLES:
        yield name, os.environ.get(name) or "not set"


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{pages * size / 2**30:.0f} GiB of memory"


def _gpus() -> Iterator[str]:
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield f"{about.name} ({about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda})"
    if torch.backends.mps.is_available():
        yield "Apple MPS"


def _graphics() -> str:
    devices, has_osmesa = egl_devices(), osmesa()
    why = obstacle(os.environ, devices, has_osmesa)
    found = f"{devices} EGL devices, OSMesa {'yes' if has_osmesa else 'no'}"
    return (
        f"{found}; MuJoCo cannot draw: {why}" if why else f"{found}; {choose_platform(devices, has_osmesa)}"
    )

"""AI-WAM: world action models on action images (arXiv 2604.06168)."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

try:
    __version__ = version("ai-wam")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0+unknown"

_ROOT = Path(__file__).resolve().parent.parent


def _check_siblings() -> None:
    """Refuse to run beside a foreign top-level package that hides one of ours.

    Raises:
        ImportError: another distribution's `tasks` (or `backbones`, ...) comes first on the import path.
    """
    for name in ("backbones", "tasks", "datamodules", "benchmarks", "configs"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
        if found != _ROOT / name:
            raise ImportError(
                f"ai_wam needs its own package {name!r} at {_ROOT / name}, but the import path leads to "
                f"{found}. Uninstall or rename the other {name!r}, or run from another folder."
            )


_check_siblings()

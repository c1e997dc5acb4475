"""Provenance of a result: versions of packages, the code's commit, the checkpoint's content hash."""

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ai_wam.files.atomic import AnyPath, as_path

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("ai-wam", "torch", "lightning", "diffusers", "mujoco", "numpy", "av")


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Versions of Python, platform, packages and code; packages that are not installed are left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional package, or a checkout that was never installed
            continue
    commit = git_commit(_ROOT)
    return found if commit is None else found | {"commit": commit}


def git_commit(root: Path) -> str | None:
    """The commit at `root` and whether files differ from it; None if it is no repository's root."""
    if not (root / ".git").exists():  # an installed package may be inside another repository
        return None
    try:
        words = ("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")
        head, changed = (_git(root, *part) for part in words)
    except (OSError, subprocess.CalledProcessError):  # no git here, or not our repository to read
        return None
    return f"{head} with changes" if changed else head


def content_hash(path: str | AnyPath) -> str:
    """SHA-256 of a file, or of a folder's files with their names (a sharded checkpoint).

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    path = as_path(path)
    if path.is_dir():
        parts = sorted(part for part in path.rglob("*") if part.is_file())
        named = [f"{str(part)[len(str(path)) :]} {content_hash(part)}" for part in parts]
        return hashlib.sha256("\n".join(named).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _git(root: Path, *words: str) -> str:
    run = subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True)
    return run.stdout.strip()

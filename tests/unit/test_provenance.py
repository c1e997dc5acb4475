"""What a result says it was made with."""

import hashlib
import subprocess

import pytest

from benchmarks.evaluation.provenance import content_hash, git_commit, versions


@pytest.fixture
def repository(tmp_path):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    return tmp_path, git("rev-parse", "HEAD")


def test_commit_is_the_one_checked_out_and_tells_of_changes(repository):
    root, head = repository
    assert git_commit(root) == head
    (root / "file").write_text("2")
    assert git_commit(root) == f"{head} with changes"


def test_a_folder_inside_a_foreign_repository_has_no_commit(repository):
    root, _ = repository
    (root / "site-packages").mkdir()
    assert git_commit(root / "site-packages") is None


def test_versions_name_what_runs():
    assert {"python", "numpy", "torch"} <= set(versions())


def test_content_decides_the_hash_of_a_file_and_of_a_folder(tmp_path):
    one, two = tmp_path / "one.ckpt", tmp_path / "two.ckpt"
    one.write_bytes(b"weights")
    two.write_bytes(b"weights")
    assert content_hash(one) == content_hash(two) == hashlib.sha256(b"weights").hexdigest()
    before = content_hash(tmp_path)
    two.write_bytes(b"others")
    assert content_hash(tmp_path) != before
    before = content_hash(tmp_path)
    two.rename(tmp_path / "three.ckpt")
    assert content_hash(tmp_path) != before
    with pytest.raises(FileNotFoundError):
        content_hash(tmp_path / "none.ckpt")

"""Everything in a store: recorded, converted, cached, inspected, trained on, exported under s3:// alone.

Left out where `pip install "moto[server]" s3fs` is missing.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_fixtures import folder

pytestmark = pytest.mark.slow  # seven commands, each a process of its own, against a server: a minute
MAIN = "from ai_wam.cli import main; main()"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """A stand-in for S3 on this machine, empty but for a bucket; what a user sets to reach it."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    boto3, _ = pytest.importorskip("boto3"), pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    words = dict(
        zip(("aws_access_key_id", "aws_secret_access_key", "region_name"), keys.values(), strict=True)
    )
    boto3.client("s3", endpoint_url=address, **words).create_bucket(Bucket="bucket")
    yield {**os.environ, **keys, "FSSPEC_S3_ENDPOINT_URL": address, "OMP_NUM_THREADS": "1"}
    server.stop()


def test_nothing_but_a_store(environment: dict[str, str], tmp_path: Path):
    def python(code: str, *words: str) -> str:
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout + done.stderr

    (tmp_path / "recordings").mkdir()
    folder.write(tmp_path / "recordings")
    python("import fsspec; fsspec.filesystem('s3').put('recordings/', 'bucket/recordings', recursive=True)")
    (tmp_path / "recordings").rename(tmp_path / "out_of_reach")

    settings = ["--episodes_per_shard=2", "--workers=2", "--out=s3://bucket/train"]
    reach = ["--config", "configs/collect/reach_target.yaml", "--source.init_args.episodes_per_task=3"]
    assert "3 episodes" in python(MAIN, "collect", *reach, *settings)
    path = "--source.init_args.path=s3://bucket/recordings"
    mine = ["--config", "configs/convert/folder.yaml", path, "--out=s3://bucket/mine", "--workers=2"]
    assert "2 episodes, 12 frames" in python(MAIN, "convert", *mine)
    fit = [
        "--config",
        "configs/quickstart.yaml",
        "--data.train=s3://bucket/train",
        "--data.val=s3://bucket/train",
    ]
    assert "windows of 3 episodes" in python(MAIN, "cache", *fit)
    for shards in ("train", "mine"):
        assert f"s3://bucket/{shards}/inspection" in python(MAIN, "inspect", f"s3://bucket/{shards}")
    short = [
        "--data.workers=1",
        "--data.batch_size=2",
        "--trainer.max_steps=2",
        "--trainer.limit_val_batches=1",
    ]
    said = python(MAIN, "fit", *fit, *short, "--trainer.val_check_interval=2")
    assert "latents come from s3://bucket/train/caches/" in said
    assert "`max_steps=2` reached" in said
    python(MAIN, "export", "--shards=s3://bucket/train", "--to=lerobot", "--out=s3://bucket/lerobot")
    again = "import sys, datamodules.sources.lerobot as m; print(len(m.LeRobotSource(sys.argv[1])))"
    assert python(again, "s3://bucket/lerobot").strip() == "3"

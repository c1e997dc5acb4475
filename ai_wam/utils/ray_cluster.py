"""A Ray cluster for as long as work lasts: the one that RAY_ADDRESS names, or workers on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ai_wam.errors import MissingPackage


@contextmanager
def ray_cluster(workers: int) -> Iterator[Any]:
    """The module `ray`, connected; disconnected when the block ends.

    Args:
        workers: processors of a cluster on this machine; on a named one their number is the cluster's.

    Raises:
        ImportError: Ray is not installed; the message names the extra.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingPackage("--ray needs Ray: pip install 'ai-wam[ray]'") from error
    ray.init(**({} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}))
    try:
        yield ray
    finally:
        ray.shutdown()

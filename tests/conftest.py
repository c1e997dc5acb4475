"""The default run is offline and uses one thread per process."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub client is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

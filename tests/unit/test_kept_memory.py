"""A command that runs a model keeps the memory that its tensors gave back."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
from pathlib import Path
from ai_wam.utils.kept_memory import keep_freed_memory

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

if {keep} and not keep_freed_memory():
    print("cannot")
before = megabytes()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
block = libc.malloc(200 * 2**20)
ctypes.memset(block, 1, 200 * 2**20)
libc.free(block)
print(megabytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_stays_where_asked():
    left = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM.replace("{keep}", str(keep))],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for keep in (False, True)
    ]
    if "cannot" in left[1]:
        pytest.skip("the C library is not glibc")
    assert int(left[0][0]) < 20
    assert int(left[1][0]) > 180

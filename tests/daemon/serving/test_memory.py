"""Heaps of threads are limited, and the limit holds: `malloc_info` of glibc counts them."""

import subprocess
import sys

import pytest

COUNT = """
import ctypes, re, sys, tempfile, threading
from daemon.serving.memory import ARENAS, limit_arenas
if not limit_arenas():
    sys.exit(3)
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(6)
def work():
    together.wait(20)
    assert libc.malloc(ctypes.c_size_t(100_000))
    together.wait(20)
threads = [threading.Thread(target=work) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, ctypes.c_void_p(stream))
    libc.fclose(ctypes.c_void_p(stream))
    heaps = len(re.findall("<heap nr=", file.read().decode()))
assert heaps <= ARENAS, heaps
"""


def test_threads_share_two_heaps() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, timeout=60)
    if done.returncode == 3:
        pytest.skip("this C library has no such limit")
    assert done.returncode == 0, done.stderr

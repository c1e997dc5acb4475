"""An adapter that does everything a simulator may do to its process."""

import ctypes
import os
import sys
import time

import numpy as np


class LostTrial(Exception):
    lost = True


class World:
    def __init__(self, start=0, fail=""):
        if fail == "exit":
            print("no licence", flush=True)
            os._exit(3)
        if fail == "raise":
            raise OSError("no display")
        if fail == "sleep":
            time.sleep(60)
        self.total = start

    def add(self, number):
        self.total += number
        return self.total

    def echo(self, value):
        return value

    def modules(self):
        return {"packages": sorted(name for name in sys.modules if "." not in name), "path": sys.path}

    def chatter(self, lines):
        print("printed\n" * lines, end="", flush=True)
        os.write(1, b"\x00AIWAM001 raw bytes on stdout\n")
        ctypes.CDLL(None).puts(b"from C")
        ctypes.CDLL(None).fflush(None)
        return lines

    def exit(self, code):
        print("giving up", flush=True)
        os._exit(code)

    def segfault(self):
        ctypes.string_at(0)

    def hang(self):
        print("stuck", flush=True)
        time.sleep(60)

    def spawn_and_hang(self):
        print(os.spawnvp(os.P_NOWAIT, "sleep", ["sleep", "60"]), flush=True)
        time.sleep(60)

    def wrong(self):
        return {}["missing key"]

    def lose(self):
        raise LostTrial("no scene")

    def unsendable(self):
        return np.array([object()])

    def garble(self, reply):
        """Make the server answer with this JSON instead of its own."""
        server = sys.modules["__main__"]
        server.send = lambda connection, message: connection.sendall(
            server._PREFIX.pack(server._MAGIC, len(reply), 0) + reply.encode()
        )

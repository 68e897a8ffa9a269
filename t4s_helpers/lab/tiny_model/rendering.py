"""Scenes rendered ahead of training, in chunks, by all cores.

Rendering beside training would slow the training down several times on a small machine, so the
data sets here render a chunk with a process pool, then hand it out item by item.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context


def render_many(work: Callable, jobs: list, processes: int | None = None) -> list:
    """``[work(job) for job in jobs]`` on all cores; ``work`` is a module-level function."""
    processes = processes or os.cpu_count() or 1
    if processes == 1 or len(jobs) < 256:
        return [work(job) for job in jobs]
    with get_context("forkserver").Pool(processes) as pool:
        return pool.map(work, jobs, chunksize=64)


class ChunkedItems:
    """A map-style data set that makes its items chunk by chunk, for reading in order.

    Args:
        work: module-level function from an item number to an item.
        n: number of items.
        chunk: items made at a time; reading item ``i`` makes the chunk that holds it.
    """

    def __init__(self, work: Callable, n: int, chunk: int = 8192):
        self.work, self.n, self.chunk = work, n, chunk
        self._at, self._items = None, []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        at = i // self.chunk
        if at != self._at:
            start = at * self.chunk
            self._items = []  # frees the old chunk before the new one is made
            self._items = render_many(self.work, list(range(start, min(start + self.chunk, self.n))))
            self._at = at
        return self._items[i - at * self.chunk]

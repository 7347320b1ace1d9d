"""The moving parts of the caching pipeline: decode threads, a queue bounded by bytes, a writer thread.

    decode threads --clips--> ClipQueue --> the calling thread encodes --tensors--> Writer --> disk

Every wait is a short one that looks whether the run is over, so that a failure or a stop anywhere ends all stages and
no thread stays behind. Knows neither what is encoded nor what is written. Given up: processes in place of threads;
PyAV, numpy and torch release the interpreter lock where the time is spent.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..contract.errors import DataError
from .clips import Clip, Window

POLL_S = 0.05
GIB = 1 << 30
Read = Callable[[Sequence[Window]], Iterator[Clip]]


class Run:
    """Whether a run is still on. The first failure ends it; a stop request ends it without a failure."""

    def __init__(self, stop_requested: Callable[[], bool]):
        self._stop_requested = stop_requested
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.failure: BaseException | None = None

    def fail(self, failure: BaseException) -> None:
        with self._lock:
            self.failure = self.failure or failure
        self._ended.set()

    def end(self) -> None:
        self._ended.set()

    @property
    def stop_requested(self) -> bool:
        return self._stop_requested()

    @property
    def over(self) -> bool:
        return self._ended.is_set() or self.stop_requested


@dataclass(frozen=True)
class Queued:
    """A clip and the bytes that were set aside for it."""

    clip: Clip
    nbytes: int


class ClipQueue:
    """Clips on their way to the encoder, bounded by the bytes of all clips between decoding and encoding.

    Room is reserved before a clip is decoded and released after it is encoded. A clip larger than the whole budget
    passes when nothing else is there.
    """

    def __init__(self, run: Run, *, max_bytes: int = GIB, max_clips: int = 8):
        self._run = run
        self._max_bytes = max_bytes
        self._max_clips = max_clips
        self._changed = threading.Condition()
        self._ready: deque[Queued] = deque()
        self._used_bytes = self._used_clips = 0
        self._in_the_making = self._producers = 0
        self._waiting: list[int] = []  # bytes asked for
        self.peak_bytes = 0

    def reserve(self, nbytes: int) -> bool:
        """Wait for room for one clip; False when the run is over."""
        with self._changed:
            self._waiting.append(nbytes)
            self._changed.notify_all()
            try:
                while not self._fits(nbytes):
                    if self._run.over:
                        return False
                    self._changed.wait(POLL_S)
            finally:
                self._waiting.remove(nbytes)
            if self._run.over:
                return False
            self._used_bytes += nbytes
            self._used_clips += 1
            self._in_the_making += 1
            self.peak_bytes = max(self.peak_bytes, self._used_bytes)
            return True

    def _fits(self, nbytes: int) -> bool:
        empty = self._used_clips == 0
        return empty or (self._used_bytes + nbytes <= self._max_bytes and self._used_clips < self._max_clips)

    def put(self, clip: Clip, nbytes: int) -> None:
        """Hand over a clip for which `nbytes` were reserved."""
        with self._changed:
            self._in_the_making -= 1
            self._ready.append(Queued(clip, nbytes))
            self._changed.notify_all()

    def cancel(self, nbytes: int) -> None:
        """Give back a reservation whose clip did not come about."""
        with self._changed:
            self._in_the_making -= 1
        self.release(nbytes, clips=1)

    def release(self, nbytes: int, *, clips: int) -> None:
        """Clips are encoded: their room is free."""
        with self._changed:
            self._used_bytes -= nbytes
            self._used_clips -= clips
            self._changed.notify_all()

    def producers(self, change: int) -> None:
        """Count decode threads in and out."""
        with self._changed:
            self._producers += change
            self._changed.notify_all()

    def take(self) -> Queued | Literal["starved", "ended"]:
        """The next clip. "starved": none will come until the encoder releases what it holds; "ended": none at all."""
        with self._changed:
            while not self._ready:
                if self._run.over or (self._producers == 0):
                    return "ended"
                stuck = self._waiting and not any(map(self._fits, self._waiting))
                if stuck and not self._in_the_making:
                    return "starved"
                self._changed.wait(POLL_S)
            return self._ready.popleft()


class Decoders:
    """Threads that each read one source at a time and put its clips into the queue. `work` is asked as they go."""

    def __init__(
        self,
        work: Iterator[Sequence[Window]],
        *,
        read: Read,
        room: ClipQueue,
        run: Run,
        workers: int,
        broken: Callable[[Sequence[Window], str], None],
    ):
        self._work = work
        self._lock = threading.Lock()
        self._read, self._room, self._run, self._broken = read, room, run, broken
        room.producers(workers)
        self._threads = [threading.Thread(target=self._main, name=f"decode-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _main(self) -> None:
        try:
            while not self._run.over and (windows := self._next()) is not None:
                self._decode(windows)
        except BaseException as failure:  # handed to the calling thread, which raises it
            self._run.fail(failure)
        finally:
            self._room.producers(-1)

    def _next(self) -> Sequence[Window] | None:
        with self._lock:
            return next(self._work, None)

    def _decode(self, windows: Sequence[Window]) -> None:
        missing = list(windows)
        reason = "the file ended before this window; it holds fewer frames than it claims"
        try:
            self._hand_over(windows, missing)
        except (DataError, OSError) as error:
            reason = f"{error.message} {error.hint}".strip() if isinstance(error, DataError) else str(error)
        if missing and not self._run.over:
            self._broken(missing, reason)

    def _hand_over(self, windows: Sequence[Window], missing: list[Window]) -> None:
        size = max(clip_bytes(window) for window in windows)
        with contextlib.ExitStack() as open_files:
            clips = self._read(windows)
            if hasattr(clips, "close"):
                open_files.callback(clips.close)
            while missing and self._room.reserve(size):
                try:
                    clip = next(clips, None)
                except BaseException:
                    self._room.cancel(size)
                    raise
                if clip is None:
                    self._room.cancel(size)
                    return
                missing.remove(clip.window)
                self._room.put(clip, size)


class Writer:
    """One thread that carries out writes in order. A write that raises ends the run; earlier ones are done."""

    def __init__(self, write: Callable[[Any], None], *, run: Run, waiting: int = 8):
        self._write, self._run = write, run
        self._items: queue.Queue[Any] = queue.Queue(maxsize=waiting)
        self._failed = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._main, name="write", daemon=True)
        self._thread.start()

    def put(self, item: Any) -> None:
        """Hand over one item; waits while too many are on their way, dropped once a write has failed."""
        while not self._failed:
            try:
                self._items.put(item, timeout=POLL_S)
                return
            except queue.Full:
                continue

    def close(self) -> None:
        """Finish what was handed over and end the thread."""
        self._closing.set()
        self._thread.join()

    def _main(self) -> None:
        try:
            while True:
                last = self._closing.is_set()  # asked first: what was put before closing is found below
                try:
                    self._write(self._items.get(timeout=POLL_S))
                except queue.Empty:
                    if last:
                        return
        except BaseException as failure:  # handed to the calling thread, which raises it
            self._failed = True
            self._run.fail(failure)


def clip_bytes(window: Window) -> int:
    """Size of a window's pictures in memory, with controls of the same size."""
    width, height = window.bucket
    return window.count * width * height * 3 * (1 + len(window.source.controls))

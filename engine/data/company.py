"""The processes that cache one dataset together: who does what, and what number 0 hears of the others.

They meet in a store of torch.distributed. Number 0 looks at the dataset and puts up a list of pieces of work; each
process takes the next piece that nobody has taken, so that the fast ones take more and none is done twice. What
becomes of a piece the others tell number 0, which alone counts, speaks and tidies up. Messages are JSON. A process
alone has no store, and nothing here costs it anything.

Given up: a fixed share for each process, where all wait for the slowest; and gathering at the end, without progress.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ..contract.errors import ProcessLost, as_failed
from .stages import Run

if TYPE_CHECKING:
    from torch.distributed import Store

POLL_S = 0.1
FAREWELL_S = 10.0  # how long number 0 waits for the others when it gives up itself
T = TypeVar("T")
Message = Mapping[str, Any]


def meet() -> Company:
    """The processes that the variables of torchrun name; one alone where they name none."""
    count, number = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if "LOCAL_RANK" not in os.environ or count == 1:
        return Company()
    from torch.distributed import PrefixStore, TCPStore  # some builds of torch have none

    kept_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun itself, at this very port
    with _gone_means_lost():
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=number == 0 and not kept_by_agent,
            wait_for_workers=False,
            use_libuv=os.name != "nt",  # torch for Windows is built without it
        )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Company(PrefixStore(f"caching/{attempt}", store), number=number, count=count)


class Company:
    """One process among those that cache. A context: at its end the others tell number 0 how they ended."""

    def __init__(self, store: Store | None = None, *, number: int = 0, count: int = 1):
        self._store, self.number, self.count = store, number, count
        self._said, self._saying = 0, threading.Lock()  # messages of this process
        self._heard = dict.fromkeys(range(1, count), 0)  # messages of each of the others
        self._present = set(self._heard)

    @property
    def leads(self) -> bool:
        return self.number == 0

    def __enter__(self) -> Company:
        return self

    def __exit__(self, kind: type | None, failure: BaseException | None, trace: TracebackType | None) -> None:
        if self._store is None:
            return
        try:
            if self.leads:
                self._take_leave()
            else:
                self.tell({"ended": True} if failure is None else {"failed": vars(as_failed(failure)[0])})
        except ProcessLost:
            if failure is None:
                raise
        finally:
            self._store = None

    # --- number 0

    def share_out(self, pieces: Sequence[T], *, describe: Callable[[T], Any]) -> Iterator[T]:
        """Put up the pieces, `describe`d in plain values, and yield those that fall to number 0."""
        if self._store is None:
            return iter(pieces)
        with _gone_means_lost():
            for number, piece in enumerate(pieces):
                self._store.set(f"piece/{number}", json.dumps(describe(piece)))
            self._store.set("pieces", str(len(pieces)))
        return (pieces[number] for number in self._turns(len(pieces)))

    @contextlib.contextmanager
    def listening(self, hear: Callable[[Message], None], run: Run) -> Iterator[None]:
        """While number 0 works, hand it what the others tell; ends when they have ended too, or the run broke off.

        A failure of one becomes the run's: a ProcessLost in its words.
        """
        if self._store is None:
            yield
            return
        listener = threading.Thread(target=self._listen, args=(hear, run), name="listen", daemon=True)
        listener.start()
        try:
            yield
        except BaseException as failure:
            run.fail(failure)
            raise
        finally:
            listener.join()

    def _listen(self, hear: Callable[[Message], None], run: Run) -> None:
        try:
            while self._present and run.failure is None:
                if run.stop_requested:
                    self._tell_over()
                for message in self._messages():
                    hear(message)
                time.sleep(POLL_S)
        except BaseException as failure:  # handed to the thread that works, which raises it
            run.fail(failure)

    def _messages(self) -> Iterator[Message]:
        """What the others have told since the last time."""
        assert self._store is not None
        for other in sorted(self._present):
            while other in self._present:
                with _gone_means_lost():
                    key = f"{other}/{self._heard[other]}"
                    if not self._store.check([key]):
                        break
                    message = json.loads(self._store.get(key))
                    self._store.delete_key(key)
                self._heard[other] += 1
                if "ended" in message or "failed" in message:
                    self._present.remove(other)
                if "failed" in message:
                    raise ProcessLost(message["failed"]["message"], message["failed"]["hint"])
                if "ended" not in message:
                    yield message

    def _tell_over(self) -> None:
        assert self._store is not None
        with _gone_means_lost():
            self._store.set("over", "1")

    def _take_leave(self) -> None:
        """Have the others end before the store does."""
        if self._present:
            self._tell_over()
        until = time.monotonic() + FAREWELL_S
        while self._present and time.monotonic() < until:
            with contextlib.suppress(ProcessLost):  # of two failures the first is told
                for _ in self._messages():
                    pass
            time.sleep(POLL_S)

    # --- the others

    def pieces(self, run: Run) -> Iterator[Any]:
        """The pieces that fall to this process, from when they are put up until none is left or the run is over."""
        assert self._store is not None
        with _gone_means_lost():
            while not self._store.check(["pieces"]):
                if run.over:
                    return
                time.sleep(POLL_S)
            count = int(self._store.get("pieces"))
        for number in self._turns(count):
            with _gone_means_lost():
                piece = self._store.get(f"piece/{number}")
            yield json.loads(piece)

    @contextlib.contextmanager
    def obeying(self, run: Run) -> Iterator[None]:
        """While a process helps, end its run when number 0 says so or is gone; raises what made the run fail."""
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(run, done), name="obey", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
        if run.failure is not None:
            raise run.failure

    def _watch(self, run: Run, done: threading.Event) -> None:
        assert self._store is not None
        try:
            while not done.wait(POLL_S):
                with _gone_means_lost():
                    if self._store.check(["over"]):
                        run.end()
        except ProcessLost as failure:
            run.fail(failure)

    def tell(self, message: Message) -> None:
        """Tell number 0. From any thread."""
        assert self._store is not None
        with self._saying, _gone_means_lost():
            self._store.set(f"{self.number}/{self._said}", json.dumps(message))
            self._said += 1

    def _turns(self, count: int) -> Iterator[int]:
        """The numbers of pieces that nobody had before."""
        assert self._store is not None
        while True:
            with _gone_means_lost():
                number = self._store.add("turn", 1) - 1
            if number >= count:
                return
            yield number


@contextlib.contextmanager
def _gone_means_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what a store raises when whoever keeps it is gone
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ProcessLost(
            f"The processes that cache together lost contact: {first_line}",
            "The first of them ended. What it said stands above or in log.txt.",
        ) from error

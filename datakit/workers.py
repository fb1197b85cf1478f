"""Our executor: a pool of worker processes that returns results in the order of the blocks.

A worker that dies takes one block with it. A block of texts is then halved until the row that does it is alone, and
that row is rejected with DK121; a Parquet or Arrow file cannot be halved safely and is refused.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, Protocol, Self

from datakit import errors, launch
from datakit.reading.blocks import Block, Span
from datakit.step import Result, SourcePlan
from datakit.tally import Tally
from datakit.worker import pack_block, read_message, read_result, write_message

PATIENCE: Final = 300.0
"""Seconds that a question may take."""


STOPPED: Final = 5
"""Rows on which workers may have to be killed before a template is given up."""


class Step(Protocol):
    """What a pool runs: the plan of a step; see `StepPlan` and `FormatStep`."""

    @property
    def sources(self) -> Sequence[SourcePlan]: ...

    def to_json(self) -> dict[str, Any]: ...

    def seconds(self, rows: int) -> float | None:
        """How long a block of so many rows may take; None for any time."""


class _Died(Exception):
    """The worker ended without an answer."""


class _Worker:
    """One process and its pipe. Only one thread speaks to it at a time."""

    def __init__(self, process: launch.Process) -> None:
        self.process = process
        self.plan: Step | None = None

    def prepare(self, plan: Step) -> None:
        if self.plan is not plan:
            try:
                self.ask("plan", plan.to_json(), seconds=plan.seconds(0))
            except _Died as died:
                raise errors.InternalError(
                    f"a worker process does not start (exit {died.args[0]})",
                    f"Try: {sys.executable} -c 'import datakit.worker'",
                ) from None
            self.plan = plan

    def ask(self, request: str, value: Any, *parts: bytes, seconds: float | None = None) -> tuple[Any, list[bytes]]:
        """Ask and wait. A worker that takes longer than `seconds` is killed; a template can run for ever."""
        if seconds is None:
            return self._ask(request, value, *parts)
        timer = threading.Timer(seconds, self.process.kill)
        timer.daemon = True  # a signal may come before anyone can cancel it
        try:
            timer.start()
            return self._ask(request, value, *parts)
        finally:
            timer.cancel()

    def _ask(self, request: str, value: Any, *parts: bytes) -> tuple[Any, list[bytes]]:
        try:
            write_message(self.process.stdin, [request, value], *parts)
            message = read_message(self.process.stdout)
        except (BrokenPipeError, EOFError, OSError, ValueError):
            message = None
        if message is None:
            self.process.kill()
            raise _Died(self.process.wait())
        (verdict, answer), out = message
        if verdict == "refused":
            name, text, hint = answer
            raise getattr(errors, name)(text, hint)
        if verdict == "failed":
            raise errors.InternalError(f"a worker failed:\n{answer}", "Please report this with the text above.")
        return answer, out

    def multiply(self) -> list[_Worker]:
        """The workers that fork off this one; none where it cannot."""
        if not self.process.siblings:
            return []
        pids, _ = self.ask("fork", None, seconds=PATIENCE)
        return [_Worker(process) for process in self.process.forked(pids)] if pids else []


class Pool:
    """Worker processes for the time of one run. Questions go to the first; the others are there once blocks come.

    Args:
        count: how many; at least one.
        arrays: whether they need numpy.
    """

    def __init__(self, count: int, arrays: bool = False) -> None:
        self.count = max(1, count)
        self.arrays = arrays
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._all: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False
        self.stopped = 0
        for process in launch.take(self.count, arrays):
            self._add(_Worker(process))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.process.close()
            self._all.clear()

    def _add(self, worker: _Worker) -> None:
        with self._lock:
            self._all.append(worker)
        self._idle.put(worker)

    def _start(self, plan: Step | None) -> None:
        worker = _Worker(launch.another(self.arrays))
        if plan is not None:
            worker.prepare(plan)
        self._add(worker)

    def _fill(self, plan: Step) -> None:
        """All workers, before the first block: copies of the first, or started anew where it cannot be copied."""
        if len(self._all) == 1 and self.count > 1:
            first = self._idle.get()
            try:
                first.prepare(plan)
                for worker in first.multiply():
                    worker.plan = plan
                    self._add(worker)
            finally:
                self._idle.put(first)
        while len(self._all) < self.count:
            self._add(_Worker(launch.another(self.arrays)))

    def ask(self, request: str, *value: Any) -> Any:
        """One question to one worker; its first argument is a file. See `worker.QUESTIONS`.

        Raises:
            UnreadableInput: the file is damaged, or its reader crashed on it.
        """
        worker = self._idle.get()
        try:
            answer, _ = worker.ask(request, value, seconds=PATIENCE)
        except _Died:
            self._replace(worker, None)
            raise errors.UnreadableInput(f"{value[0]}: its reader crashed on it", "The file is damaged.") from None
        except BaseException as error:
            self._idle.put(worker)
            raise _naming(error, str(value[0])) from None
        self._idle.put(worker)
        return answer

    def _abandon(self, error: BaseException) -> None:
        """Let threads end whose workers are busy: after a signal nobody waits for an answer."""
        if not isinstance(error, Exception | GeneratorExit):
            self.close()

    def _replace(self, worker: _Worker, plan: Step | None) -> None:
        worker.process.close()
        with self._lock:
            if self._closed:
                raise errors.InternalError("the pool is closed")
            if worker in self._all:
                self._all.remove(worker)
        self._start(plan)

    def run(self, block: Block, plan: Step) -> list[Result]:
        """The result of one block; several where it had to be halved."""
        worker = self._idle.get()
        try:
            worker.prepare(plan)
            header, payload = pack_block(block)
            rows = block.rows[3] - block.rows[2] if block.rows else 0
            answer, parts = worker.ask("block", header, payload, seconds=plan.seconds(rows))
            result = read_result(answer, parts)
        except _Died:
            self._replace(worker, plan)
            return self._halve(block, plan)
        except BaseException as error:
            self._idle.put(worker)
            raise _naming(error, block.rows[0] if block.rows else "") from None
        self._idle.put(worker)
        return [result]

    def _halve(self, block: Block, plan: Step) -> list[Result]:
        if block.rows is not None:
            if plan.seconds(0) is None:
                raise errors.UnreadableInput(f"{block.rows[0]}: its reader crashed on it", "The file is damaged.")
            return self._halve_rows(block, block.rows, plan)
        block.load()
        spans = block.spans if block.spans is not None else _line_spans(block)
        if len(spans) <= 1:
            return [_gave_up(block, spans, plan)]
        middle = len(spans) // 2
        origins = block.origins
        halves = [
            Block(
                block.source,
                block.first,
                block.offset,
                0,
                block.payload,
                spans[part],
                header=block.header,
                origins=origins[part] if origins else None,
            )
            for part in (slice(0, middle), slice(middle, None))
        ]
        halves[0].long, halves[0].notes = block.long, block.notes
        return [result for half in halves for result in self.run(half, plan)]

    def _halve_rows(self, block: Block, rows: tuple[str, int, int, int], plan: Step) -> list[Result]:
        """Rows of our own shards, until the one that its template makes endless or too large stands alone."""
        path, part, start, stop = rows
        if stop - start <= 1:
            self.stopped += 1
            if self.stopped >= STOPPED:
                raise errors.UsageError(
                    f"the chat template had to be stopped on {self.stopped} rows",
                    "It may be meant to take for ever; look at it, or take another --chat-template.",
                )
            return [_stopped(block, plan)]
        middle = (start + stop) // 2
        halves = [(start, middle), (middle, stop)]
        return [
            result
            for low, high in halves
            for result in self.run(
                Block(block.source, block.first + low - start, 0, 0, rows=(path, part, low, high)), plan
            )
        ]

    def map(self, blocks: Iterable[Block], plan: Step) -> Iterator[tuple[Block, list[Result]]]:
        """Blocks with their results, in order. At most two blocks per worker are held."""
        self._fill(plan)
        with ThreadPoolExecutor(self.count) as threads:
            waiting: deque[tuple[Block, Future[list[Result]]]] = deque()
            try:
                for block in blocks:
                    waiting.append((block, threads.submit(self.run, block, plan)))
                    if len(waiting) > 2 * self.count:
                        done, future = waiting.popleft()
                        yield done, future.result()
                while waiting:
                    done, future = waiting.popleft()
                    yield done, future.result()
            except BaseException as error:
                for _, future in waiting:
                    future.cancel()
                self._abandon(error)
                raise


def _naming(error: BaseException, path: str) -> BaseException:
    """The same error, with the file that Arrow's own messages leave out."""
    if isinstance(error, errors.UnreadableInput) and path not in error.message:
        return errors.UnreadableInput(f"{path}: {error.message}", error.hint)
    return error


def _line_spans(block: Block) -> list[Span]:
    spans: list[Span] = []
    start, number = 0, block.first
    while start < len(block.payload):
        end = block.payload.find(b"\n", start) + 1 or len(block.payload)
        spans.append((start, end, number, block.offset + start))
        start, number = end, number + 1
    return spans


def _gave_up(block: Block, spans: list[Span], plan: Step) -> Result:
    """The reject of a row that no worker survives."""
    tally = Tally()
    rejects = []
    for start, end, number, _ in spans:
        note = "no worker could read this row within its memory"
        path = plan.sources[block.source].path
        tally.rows_in += 1
        tally.rejected["DK121"] += 1
        tally.seen["DK121"] += 1
        tally.places.setdefault("DK121", []).append([path, number, "", note])
        reject = {"source": path, "row": number, "rule": "DK121", "path": "", "message": note, "findings": []}
        rejects.append({**reject, "raw": block.payload[start:end].decode("utf-8", "replace")})
    return Result(None, rejects, tally, b"", b"", [], [])


def _stopped(block: Block, plan: Step) -> Result:
    """The reject of a row whose render had to be stopped."""
    path = plan.sources[block.source].path
    note = "its render took too long or too much memory, and was stopped"
    tally = Tally(rows_in=1, rejected=Counter({"DK701": 1}), seen=Counter({"DK701": 1}))
    tally.places["DK701"] = [[path, block.first, "", note]]
    reject = {
        "source": path,
        "row": block.first,
        "rule": "DK701",
        "name": "template-error",
        "path": "",
        "message": note,
    }
    return Result(None, [{**reject, "findings": []}], tally, b"", b"", [], [])

"""Seeded mutations of a file, and how a reader ends on each of them.

1. A mutant is the file with some bytes changed, its end cut off, or a block of it copied over, into or out of another
   place. In text, a number may also be replaced by an extreme one. Half of the places are near the start or the end of
   the file, where formats have their headers and directories.
2. A child process with limited memory reads the mutants one after another. If it crashes or hangs, that is how the
   mutant ends, and another child continues with the next.
3. A mutant is read without an error, refused by an error of hagmil, or ends in one of the four faults of ``FAULTS``.

``HAGMIL_MUTATIONS`` sets the number of mutants of each file; CONTRIBUTING.md describes the long form.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import select
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from hagmil.errors import HagmilError

COUNT = int(os.environ.get("HAGMIL_MUTATIONS", "100"))
"""Number of mutants of each file."""

Fault = Literal["unclassified", "crash", "hang", "memory"]
"""Another error than hagmil's; a signal; no end within ``TIMEOUT_S``; more than ``MEMORY_BYTES``."""
FAULTS: tuple[Fault, ...] = get_args(Fault)

TIMEOUT_S = 60.0
MEMORY_BYTES = 2 << 30
_EDGE_BYTES = 1024
_EXTREME = (b"0", b"-1", b"1e308", b"1e999", b"NaN", b"9223372036854775808", b"1" * 5000, b"0.5", b"30000", b"null")


@dataclass(frozen=True)
class Ending:
    """How the reader ended on one mutant.

    Args:
        seed: seed of the mutant.
        kind: ``read``, ``refused`` or a fault.
        detail: what the reader returned, as text, or the error.
    """

    seed: int
    kind: Literal["read", "refused"] | Fault
    detail: str


def mutate(data: bytes, seed: int, *, text: bool = False) -> bytes:
    """Make one mutant.

    Args:
        data: the file.
        seed: the same seed gives the same mutant.
        text: whether numbers may be replaced as well.
    """
    chance = random.Random(seed)
    mutant = bytearray(data)
    ways = [_flip, _flip, _cut, _copy_block, _insert_block, _delete_block, *([_replace_number] * 3 if text else ())]
    for _ in range(chance.choice((1, 1, 2, 4))):
        if mutant:
            chance.choice(ways)(mutant, chance)
    return bytes(mutant)


def endings(
    path: Path,
    read: Callable[[], object],
    *,
    text: bool = False,
    count: int = COUNT,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Ending]:
    """Read the mutants of a file, each in its place.

    Args:
        path: the file; afterwards it has its own content again.
        read: reads it; what it returns is stored as text.
        text: whether the file is text.
        count: number of mutants.
        timeout_s: longest time for one mutant.
        memory_bytes: memory that a child may take in addition to that of this process.
    """
    data = path.read_bytes()
    found: list[Ending] = []
    try:
        while len(found) < count:
            found.extend(_read_in_child(path, data, read, range(len(found), count), text, timeout_s, memory_bytes))
    finally:
        path.write_bytes(data)
    return found


def counts(found: Sequence[Ending]) -> dict[str, int]:
    """Number of mutants by kind of ending, every kind included."""
    counted = Counter(ending.kind for ending in found)
    return {kind: counted[kind] for kind in ("read", "refused", *FAULTS)}


def faults(found: Sequence[Ending]) -> list[Ending]:
    """The endings that no mutant may have."""
    return [ending for ending in found if ending.kind in FAULTS]


def _place(mutant: bytearray, chance: random.Random) -> int:
    """A place in the file, with one half near its start or end."""
    edge = min(_EDGE_BYTES, len(mutant))
    low, high = chance.choice(((0, len(mutant)), (0, len(mutant)), (0, edge), (len(mutant) - edge, len(mutant))))
    return chance.randrange(low, high)


def _flip(mutant: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 4, 16))):
        mutant[_place(mutant, chance)] = chance.choice((0, 0xFF, 0x7F, chance.randrange(256), chance.randrange(256)))


def _cut(mutant: bytearray, chance: random.Random) -> None:
    del mutant[_place(mutant, chance) :]


def _block(mutant: bytearray, chance: random.Random) -> bytes:
    start = _place(mutant, chance)
    return bytes(mutant[start : start + chance.choice((1, 4, 64, 1024))])


def _copy_block(mutant: bytearray, chance: random.Random) -> None:
    block, place = _block(mutant, chance), _place(mutant, chance)
    mutant[place : place + len(block)] = block


def _insert_block(mutant: bytearray, chance: random.Random) -> None:
    place = _place(mutant, chance)
    mutant[place:place] = _block(mutant, chance)


def _delete_block(mutant: bytearray, chance: random.Random) -> None:
    place = _place(mutant, chance)
    del mutant[place : place + chance.choice((1, 4, 64, 1024))]


def _replace_number(mutant: bytearray, chance: random.Random) -> None:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?([eE][+-]?\d+)?", mutant))
    if numbers:
        start, end = chance.choice(numbers).span()
        mutant[start:end] = chance.choice(_EXTREME)


def _read_in_child(
    path: Path,
    data: bytes,
    read: Callable[[], object],
    seeds: range,
    text: bool,
    timeout_s: float,
    memory_bytes: int,
) -> Iterator[Ending]:
    """Steps 2 and 3: the endings up to the first crash or hang."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of this process hold no lock of a reader
        child = os.fork()
    if child == 0:
        os.close(reader)
        _serve(path, data, read, seeds, text, memory_bytes, writer)
    os.close(writer)
    done, hung = 0, False
    with os.fdopen(reader, "rb", buffering=0) as lines:  # a buffer would hide lines from select
        while done < len(seeds):
            if not select.select([lines], [], [], timeout_s)[0]:
                os.kill(child, signal.SIGKILL)
                hung = True
                yield Ending(seeds[done], "hang", f"no end within {timeout_s:g} s")
                break
            line = lines.readline()
            if not line.endswith(b"\n"):
                break
            kind, detail = json.loads(line)
            yield Ending(seeds[done], kind, detail)
            done += 1
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if done < len(seeds) and not hung:
        yield Ending(seeds[done], "crash", f"exit status {status}")


def _serve(
    path: Path, data: bytes, read: Callable[[], object], seeds: range, text: bool, memory_bytes: int, writer: int
) -> None:
    """Read the mutants in the child, and end it."""
    status = 1
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for seed in seeds:
            path.write_bytes(mutate(data, seed, text=text))
            ending = json.dumps(_ending(read)) + "\n"
            os.write(writer, ending.encode())
        status = 0
    finally:
        os._exit(status)


def _ending(read: Callable[[], object]) -> tuple[str, str]:
    try:
        return "read", str(read())[:1000]
    except BaseException as error:  # noqa: BLE001 - the kind of error is the result
        kind = "refused" if isinstance(error, HagmilError) else "unclassified"
        if _is_memory(error):
            kind = "memory"
        return kind, f"{type(error).__name__}: {error}"[:1000]


def _is_memory(error: BaseException | None) -> bool:
    """Whether a lack of memory is the error or one of its causes."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False

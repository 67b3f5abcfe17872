"""A long run: saves, loads and uses at random, while the operating system and servers fail.

The model of each place is the version that it has. A save that succeeds gives it another one; one
that fails, is interrupted or is killed leaves the old one or the new one, wholly. What is loaded
has the bits of the version, or the use of it is an error. Two processes save together, too, and
S3 is among the places where moto is installed. `python -m tests.long` runs it.
"""

import builtins
import contextlib
import ctypes
import gc
import importlib.util
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import jax
import ml_dtypes
import numpy as np
from fsspec.implementations.memory import MemoryFileSystem
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax._src.reading import patience
from safejax._src.storage.litter import is_temporary
from tests.support.children import CHILDREN
from tests.support.servers import HttpServer, S3Server
from tests.support.together import Together, devices_together, raised

THREADS = 16
KINDS = ("short", "EINTR", "EIO", "ENOSPC", "EDQUOT", "ESTALE")
JUMPS = (0, 0, 10**6, -(10**6), 10**8)
WARM = 300
"""Operations before what is held is counted: by then, all that is kept once is there."""


def model(version: int) -> dict[str, Any]:
    """The tree of a version: no two have a value in common."""
    return {
        "w": np.arange(40_000, dtype=np.float32).reshape(200, 200) + 50_000 * version,
        "list": [
            np.full(33, version, np.int32),
            np.full((3, 5), version % 120, ml_dtypes.bfloat16),
        ],
        "step": version,
        "small": np.full((), version, np.int32),
    }


def agrees(tree: Any, version: int) -> bool:
    """Whether a tree has every bit of a version; raises what its reading raises."""
    return all(
        np.asarray(one).tobytes() == np.asarray(other).tobytes()
        for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(model(version)), strict=True)
    )


def version_of(tree: Any) -> int:
    """The version that a tree wholly is."""
    version = int(tree["step"])
    assert agrees(tree, version), f"a part of version {version} is of another"
    return version


class Interrupted(BaseException):
    """A signal has come."""


class Faults:
    """The faults of the operating system, if its shim is loaded."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.fsencode(folder)
        library = ctypes.CDLL(None)
        self._library = library if hasattr(library, "faults_set") else None

    @contextlib.contextmanager
    def armed(self, rng: random.Random) -> Generator[None]:
        if self._library is None:
            yield
            return
        self._library.faults_clock(ctypes.c_long(rng.choice(JUMPS)))
        seed = ctypes.c_ulong(rng.getrandbits(60))
        self._library.faults_set(self._folder, rng.choice([2, 4, 8, 20]), seed)
        try:
            yield
        finally:
            self._library.faults_set(self._folder, 0, seed)
            self._library.faults_clock(ctypes.c_long(0))

    @contextlib.contextmanager
    def of_calls(self, rate: int, seed: int) -> Generator[None]:
        """Faults without jumps of the clock, by which JAX would think that a process has died."""
        if self._library is not None:
            self._library.faults_set(self._folder, rate, ctypes.c_ulong(seed))
        try:
            yield
        finally:
            if self._library is not None:
                self._library.faults_set(self._folder, 0, ctypes.c_ulong(seed))

    def counts(self) -> dict[str, int]:
        if self._library is None:
            return {}
        return {name: self._library.faults_count(kind) for kind, name in enumerate(KINDS)}


class Place:
    """Where a tree is saved and loaded; `versions` may be there, of which one is."""

    def __init__(self, path: Any, fs: Any = None, **options: Any) -> None:
        self.path, self.fs, self.options = path, fs, options
        self.versions = {0}
        self.save(0)

    is_local = property(lambda self: self.fs is None)
    is_saved_here = True
    """Whether this process alone saves there, and so may do so in the background."""
    share = 5
    """How often it is used, in comparison with others."""
    how = ""
    """What the count of saves says of it."""

    def fail(self, at_times: bool) -> None:
        """Whether what serves or saves the place fails at times, apart from this process."""

    def save(self, version: int, **more: Any) -> None:
        safejax.save(model(version), self.path, fs=self.fs, **self.options, **more)

    def load(self, **options: Any) -> Any:
        return safejax.load(self.path, fs=self.fs, **options)

    def settle(self) -> None:
        """See which of the versions is there, with no fault meanwhile."""
        self.fail(False)
        found = version_of(self.load())
        assert found in self.versions, f"{self.path}: {found} is none of {self.versions}"
        self.versions = {found}
        self.fail(True)


class Served(Place):
    """A file that a server of HTTP has, which fails at times."""

    is_local = property(lambda self: False)  # pyright: ignore[reportAssignmentType]
    is_saved_here = False
    share = 1

    def __init__(self, server: HttpServer, rng: random.Random) -> None:
        self.server, self.rng = server, rng
        self.failed = 0
        super().__init__(f"{server.url}/m.safetensors")

    def fail(self, at_times: bool) -> None:
        self.server.fault = self._fault if at_times else lambda _: None

    def _fault(self, _: Any) -> str | None:
        found = self.rng.choice([None, None, None, "cut", "503", "no etag", "refuses conditions"])
        self.failed += found is not None
        self.server.requests.clear()
        return found

    def save(self, version: int, **more: Any) -> None:
        del more
        self.server.files["/m.safetensors"] = safejax.serialize(model(version))


class InS3(Place):
    """A file, or a folder, in S3, which refuses at times."""

    share = 1
    how = " in S3"

    def __init__(self, server: S3Server, rng: random.Random, name: str, **options: Any) -> None:
        self.server, self.rng = server, rng
        self.failed = 0
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        super().__init__(f"s3://bucket/{name}", fs, **options)

    def fail(self, at_times: bool) -> None:
        self.server.clear()
        self.server.fault = self._fault("503") if at_times else lambda _: None
        self.server.fault_of_changes = self._fault("403") if at_times else lambda _: None

    def _fault(self, status: str) -> Callable[[Any], str | None]:
        def fault(_: Any) -> str | None:
            fails = self.rng.random() < 0.1
            self.failed += fails
            return status if fails else None

        return fault


class ByTwo(Place):
    """A file, or a folder, that two processes of `jax.distributed` save; calls fail in both."""

    is_saved_here = False
    share = 2
    how = " by two"

    def __init__(self, pair: Together, rng: random.Random, path: Path, **options: Any) -> None:
        self.pair, self.rng = pair, rng
        self.failed = 0
        self.rates = [0]
        super().__init__(path, **options)

    def fail(self, at_times: bool) -> None:
        self.rates = [0, 0, 4, 8, 20] if at_times else [0]

    def save(self, version: int, **more: Any) -> None:
        options = {**self.options, **more}
        rate, seed = self.rng.choice(self.rates), self.rng.getrandbits(60)
        in_background = self.rng.random() < 0.3
        errors = self.pair.run(_save_by_two, self.path, version, options, in_background, rate, seed)
        self.failed += errors[0] != ("", "")
        for name, text in errors:
            if name:
                kind = getattr(safejax, name, None) or getattr(builtins, name)
                assert issubclass(kind, safejax.SafejaxError | OSError), (name, text)
                raise OSError(text)


class Run:
    """One long run in a folder; `count` says what was done."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.count: Counter[str] = Counter()
        self.faults = Faults(folder)
        self.server = HttpServer()
        self.served = Served(self.server, random.Random(seed + 1))
        MemoryFileSystem.store.clear()
        self.places = [
            Place(folder / "m.safetensors"),
            Place(folder / "sums.safetensors", checksum=True),
            Place(folder / "set", max_shard_bytes=100_000),
            Place("/m.safetensors", MemoryFileSystem()),
            self.served,
        ]
        self.pair = Together()
        by_two: list[tuple[str, dict[str, Any]]] = [
            ("two.safetensors", {"checksum": True}),
            ("two", {"max_shard_bytes": 100_000, "one_writer_per_file": True}),
        ]
        for name, options in by_two:
            place = ByTwo(self.pair, random.Random(seed + 2), folder / name, **options)
            self.places.append(place)
        self.s3: S3Server | None = None
        if all(map(importlib.util.find_spec, ("s3fs", "moto"))):
            self.s3 = S3Server()
            logging.getLogger("werkzeug").setLevel(logging.ERROR)
            os.environ.update(self.s3.environment)
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
            rng = random.Random(seed + 3)
            self.places.append(InS3(self.s3, rng, "m.safetensors"))
            self.places.append(InS3(self.s3, rng, "set", max_shard_bytes=100_000))
        self.next = 1
        self.interrupts = 0
        self.operations: list[tuple[int, Callable[[Place], None]]] = [
            (30, self.save), (6, self.save_async), (40, self.load), (10, self.part),
            (6, self.placed), (2, self.threads), (2, self.fork), (1, self.killed_writer),
            (2, self.readers_and_a_writer),
        ]  # fmt: skip

    # ---- signals

    @contextlib.contextmanager
    def signals(self) -> Generator[None]:
        """A signal each few milliseconds, which interrupts if that is asked for."""

        def handle(*_: Any) -> None:
            self.count["signals"] += 1
            if self.interrupts:
                self.interrupts -= 1
                if not self.interrupts:
                    raise Interrupted

        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def attempt(self, name: str, action: Callable[[], Any], *, interrupt: bool) -> Any:
        """What an action gives with faults; None if it is an error that a user may get."""
        self.count[name] += 1
        try:
            with (
                self.faults.armed(self.rng) if self.rng.random() < 0.6 else contextlib.nullcontext()
            ):
                self.interrupts = self.rng.randint(1, 6) if interrupt else 0
                try:
                    return action()
                finally:
                    self.interrupts = 0
        except Interrupted:
            self.count[f"{name}: interrupted"] += 1
        except (safejax.SafejaxError, OSError):
            self.count[f"{name}: an error"] += 1
        return None

    # ---- operations

    def begun(self, place: Place) -> int:
        """The next version, which may be there from now on."""
        version, self.next = self.next, self.next + 1
        place.versions.add(version)
        return version

    def save(self, place: Place) -> None:
        version = self.begun(place)

        def action() -> bool:
            place.save(version)
            return True

        interrupt = self.rng.random() < 0.2 and not isinstance(place, ByTwo)
        if self.attempt(f"save{place.how}", action, interrupt=interrupt):
            place.versions = {version}
        place.settle()

    def save_async(self, place: Place) -> None:
        if not place.is_saved_here:
            return
        version = self.begun(place)

        def action() -> bool:
            safejax.save_async(model(version), place.path, fs=place.fs, **place.options).result()
            return True

        if self.attempt("save_async", action, interrupt=False):
            place.versions = {version}
        place.settle()

    def options(self, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if place.is_local:
            found["access"] = self.rng.choice(["auto", "map", "copy", "read"])
        if self.rng.random() < 0.3:
            found["like"] = safejax.abstract(model(0)) | {"step": 0}
        return found

    def load(self, place: Place) -> None:
        (version,) = place.versions
        options = self.options(place)
        done = self.attempt(
            "load", lambda: agrees(place.load(**options), version),
            interrupt=self.rng.random() < 0.1,
        )  # fmt: skip
        assert done is not False, f"{place.path}: not the bits of version {version}"

    def part(self, place: Place) -> None:
        (version,) = place.versions
        row = self.rng.randrange(200)
        options = self.options(place)

        def action() -> bool:
            leaf = place.load(**options)["w"]
            part = np.asarray(leaf)[row] if self.rng.random() < 0.5 else np.asarray(leaf[row])
            return bool((part == model(version)["w"][row]).all())

        done = self.attempt("part", action, interrupt=False)
        assert done is not False, f"{place.path}: a row of another version than {version}"

    def placed(self, place: Place) -> None:
        (version,) = place.versions
        options = self.options(place)
        done = self.attempt(
            "materialize", lambda: agrees(safejax.materialize(place.load(**options)), version),
            interrupt=False,
        )  # fmt: skip
        assert done is not False, f"{place.path}: not the bits of version {version}"

    def threads(self, place: Place) -> None:
        """Several threads use one tree, and each gets every bit or an error."""
        (version,) = place.versions
        rows = [self.rng.randrange(200) for _ in range(THREADS)]
        expected = model(version)

        def use(tree: Any, n: int) -> bool | None:
            try:
                if n % 4 == 0:
                    return bool((np.asarray(tree["w"][rows[n]]) == expected["w"][rows[n]]).all())
                if n % 4 == 1:
                    return agrees(safejax.materialize(tree), version)
                if n % 4 == 2:
                    return agrees(safejax.deserialize(safejax.serialize(tree)), version)
                return agrees(tree, version)
            except (safejax.SafejaxError, OSError):
                return None

        def action() -> list[bool | None]:
            tree = place.load()
            with ThreadPoolExecutor(THREADS) as pool:
                return list(pool.map(lambda n: use(tree, n), range(THREADS)))

        done = self.attempt("threads", action, interrupt=False)
        assert done is None or False not in done, f"{place.path}: other bits in a thread"

    def fork(self, place: Place) -> None:
        """A process that is forked after a load reads what the tree has not read."""
        if not place.is_local:
            return
        (version,) = place.versions
        tree = place.load(access=self.rng.choice(["map", "read"]))
        self.count["fork"] += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX's threads are not used in it.
            child = os.fork()
        if child == 0:
            try:
                os._exit(0 if agrees(tree, version) else 1)
            except BaseException:  # noqa: BLE001 - it must not go on as a second run
                traceback.print_exc()
                os._exit(2)
        assert _ended(child, 60) == 0, f"{place.path}: a forked process has read something else"

    def killed_writer(self, place: Place) -> None:
        """A process that saves is killed at any moment."""
        if not place.is_local:
            return
        begin, self.next = self.next, self.next + 1000
        writer = CHILDREN.Process(target=_save_all, args=(place.path, begin, place.options))
        writer.start()
        time.sleep(self.rng.uniform(0.05, 0.5))
        writer.kill()
        writer.join()
        self.count["killed writers"] += 1
        place.versions |= set(range(begin, begin + 1000))
        place.settle()

    def readers_and_a_writer(self, place: Place) -> None:
        """Whatever is loaded while a process saves is wholly one version."""
        if not place.is_local:
            return
        begin, self.next = self.next, self.next + 20
        args = (place.path, begin, place.options, 20)
        writer = CHILDREN.Process(target=_save_all, args=args)
        writer.start()
        while writer.is_alive():
            assert version_of(place.load()) in place.versions | set(range(begin, begin + 20))
            self.count["loads beside a writer"] += 1
        writer.join()
        assert writer.exitcode == 0
        place.versions = {begin + 19}
        place.settle()

    def spawn(self) -> None:
        """A process that is started after a load gets its tree, and loads the file, too."""
        place = self.places[0]
        (version,) = place.versions
        command = (
            "import sys, safejax\n"
            "from tests.support.long_run import version_of\n"
            "assert version_of(safejax.load(sys.argv[1])) == int(sys.argv[2])"
        )
        environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
        subprocess.run(
            [sys.executable, "-c", command, str(place.path), str(version)],
            check=True, env=environment,
        )  # fmt: skip
        self.count["spawn"] += 1

    # ---- all of it

    def held(self) -> dict[str, int]:
        """What the process holds: descriptors, mappings of the files, threads, and memory in KB."""
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "mappings": maps.count(str(self.folder)),
            "threads": threading.active_count(),
            "memory": pages * os.sysconf("SC_PAGE_SIZE") >> 10,
        }

    def run(self, seconds: float, least: int = 0) -> dict[str, Any]:
        """Run so long, and so many operations; what was done. An error says what was lost."""
        end = time.monotonic() + seconds
        weights = [weight for weight, _ in self.operations]
        shares = [place.share for place in self.places]
        before: dict[str, int] = {}
        done = 0
        patience_before = patience.PATIENCE
        patience.PATIENCE = patience.Patience(pause=0.001)  # pyright: ignore - of a server at hand
        try:
            with self.signals():
                while time.monotonic() < end or done < least:
                    ((_, operation),) = self.rng.choices(self.operations, weights)
                    (place,) = self.rng.choices(self.places, shares)
                    operation(place)
                    done += 1
                    if done == WARM:
                        before = self.held()
            self.spawn()
        finally:
            patience.PATIENCE = patience_before  # pyright: ignore
        after = self.held()
        for place in self.places:
            place.fail(False)
            place.save(self.begun(place))
            place.settle()
        self.pair.__exit__()
        litter = [name for name in os.listdir(self.folder) if is_temporary(name)]
        assert litter == [], litter
        self.server.close()
        if self.s3 is not None:
            self.s3.close()
        return {
            "operations": done,
            "done": dict(sorted(self.count.items())),
            "faults of the operating system": self.faults.counts(),
            "faults of servers, and of saves by two": {
                str(place.path).removeprefix(f"{self.folder}/"): place.failed
                for place in self.places
                if isinstance(place, Served | InS3 | ByTwo)
            },
            "held before": before,
            "held after": after,
        }


def _save_by_two(
    process: int, path: Path, version: int, options: dict[str, Any], in_background: bool,
    rate: int, seed: int,
) -> tuple[str, str]:  # fmt: skip
    """One process's part of a save by two, in which one call of `rate` fails; its error."""
    mesh = jax.sharding.Mesh(devices_together(), ("x",), axis_types=(AxisType.Auto,))
    tree = model(version)
    whole = tree["w"]
    tree["w"] = jax.make_array_from_callback(
        whole.shape, NamedSharding(mesh, P("x")), lambda index: whole[index]
    )

    def save() -> None:
        if in_background:
            safejax.save_async(tree, path, **options).result()
        else:
            safejax.save(tree, path, **options)

    with Faults(path.parent).of_calls(rate, seed + process):
        return raised(save)


def _save_all(path: Any, begin: int, options: dict[str, Any], count: int = 1000) -> None:
    for version in range(begin, begin + count):
        safejax.save(model(version), path, **options)


def _ended(child: int, seconds: float) -> int:
    """The exit code of a process, which is killed if it takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1

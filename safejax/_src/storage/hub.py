"""Repositories of the Hugging Face Hub: files of its cache are mapped, and others are requested.

huggingface_hub is an extra and is not imported here: whoever has its file system has imported it.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, final
from urllib.parse import unquote

from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.masking import masked
from safejax._src.reading.patience import may_pass
from safejax._src.reading.source import File
from safejax._src.storage.far import FarStore
from safejax._src.storage.faults import told
from safejax._src.storage.local import LocalStore
from safejax._src.storage.remote import RemoteStore
from safejax._src.storage.store import Access

_PATH: Final = re.compile(
    r"(?:hf://)?(?:(?P<kind>datasets|spaces|models)/)?(?P<name>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<file>.*))?"
)
"""The paths of huggingface_hub's file system, but for those of buckets."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def hub_store(fs: FileSystem, path: str) -> "tuple[HubStore, str] | None":
    """The store of the repository that a path is in, and the path there.

    None if `fs` is not huggingface_hub's file system, or the path is not that of a repository.
    The Hub is asked which commit the revision is, so that all files are of one; if it cannot be
    asked, the commit of the cache is it. Raises `FileNotFoundError` or `ReadError` if there is
    neither.
    """
    module: Any = sys.modules.get("huggingface_hub.hf_file_system")
    if module is None or not isinstance(fs, module.HfFileSystem):
        return None
    found = _PATH.fullmatch(path)
    if found is None or found["name"].startswith("buckets/"):
        return None
    repository = _Repository(
        fs, found["name"], (found["kind"] or "models").removesuffix("s"),
        unquote(found["revision"] or "main"),
    )  # fmt: skip
    file = (found["file"] or "").strip("/")
    return HubStore(RemoteStore(fs), repository), f"{repository.root}/{file}".rstrip("/")


@final
class _Repository:
    """A repository at one commit."""

    def __init__(self, fs: FileSystem, name: str, kind: str, revision: str) -> None:
        self._fs = fs
        self._name = name
        self._kind = kind
        self._revision = revision
        prefix = "" if kind == "model" else f"{kind}s/"
        self._shown = f"hf://{prefix}{name}"
        # The commit is asked for only if the revision is a name.
        is_commit = _COMMIT.fullmatch(revision) is not None
        self.commit = revision if is_commit else self._commit()
        self.root = f"{self._shown}@{self.commit}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Repository) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    @cached_property
    def files(self) -> list[str]:
        """The paths of all files, as the Hub lists them, or else the cache."""
        listed = self._listed
        if listed is not None:
            return [each.rfilename for each in listed.siblings or []]
        folder = self._folder
        assert folder is not None
        return [
            os.path.relpath(os.path.join(where, name), folder).replace(os.sep, "/")
            for where, _, names in os.walk(folder)
            for name in names
        ]

    def cached(self, file: str) -> str | None:
        """The path of a file in the cache, if it is there."""
        path = self._hub.try_to_load_from_cache(
            self._name, file, cache_dir=self._hub.constants.HF_HUB_CACHE,
            revision=self.commit, repo_type=self._kind,
        )  # fmt: skip
        return path if isinstance(path, str) else None

    @property
    def _hub(self) -> Any:
        return sys.modules["huggingface_hub"]

    def _commit(self) -> str:
        listed = self._listed
        if listed is not None:
            return listed.sha
        with open(self._reference) as file:
            return file.read().strip()

    @cached_property
    def _listed(self) -> Any:
        """What the Hub says of the revision; None if it cannot be asked, and the cache has it."""
        api = self._hub.HfApi(endpoint=self._fs.endpoint, token=self._fs.token)

        def ask() -> Any:
            return api.repo_info(
                self._name, revision=self._revision, repo_type=self._kind, timeout=30
            )

        is_cached = self._folder is not None
        if self._hub.constants.HF_HUB_OFFLINE:
            if is_cached:
                return None
            raise FileNotFoundError(
                f"{self._shown}: expected revision {self._revision!r} in the cache "
                f"{self._hub.constants.HF_HUB_CACHE!r}, since HF_HUB_OFFLINE is set, got none: "
                "download the repository first, or unset it"
            )
        if is_cached:
            try:
                return ask()
            except Exception as error:  # noqa: BLE001 - asked again if that is not the network's
                if may_pass(error):
                    return None
        return told(type(self._fs).__name__, f"{self._shown}@{self._revision}", ask)

    @property
    def _in_cache(self) -> str:
        name = f"{self._kind}s--{self._name.replace('/', '--')}"
        return os.path.join(self._hub.constants.HF_HUB_CACHE, name)

    @property
    def _reference(self) -> str:
        return os.path.join(self._in_cache, "refs", self._revision)

    @property
    def _folder(self) -> str | None:
        """The folder of the revision in the cache, if there is one."""
        commit = self._revision
        if os.path.isfile(self._reference):
            with open(self._reference) as file:
                commit = file.read().strip()
        folder = os.path.join(self._in_cache, "snapshots", commit)
        return folder if os.path.isdir(folder) else None


@final
@dataclass(frozen=True, slots=True)
class HubStore(FarStore):
    """The files of a repository; a path begins with the URL of the repository and its commit."""

    remote: RemoteStore
    repository: _Repository

    @property
    def kind(self) -> str:
        return self.remote.kind

    def join(self, folder: str, name: str) -> str:
        return f"{folder}/{name}"

    def parent(self, path: str) -> str:
        return path.rpartition("/")[0]

    def canonical(self, path: str) -> str:
        return path

    def exists(self, path: str) -> bool:
        return self._within(path) in self.repository.files or self.is_folder(path)

    def is_folder(self, path: str) -> bool:
        return bool(self._names(path))

    def names_in(self, folder: str) -> list[str]:
        names = self._names(folder)
        if not names:
            raise FileNotFoundError(f"{masked(folder)}: there is no such folder")
        return sorted(names)

    def read(self, path: str) -> bytes:
        cached = self.repository.cached(self._within(path))
        if cached is None:
            return self.remote.read(path)
        return LocalStore().read(cached)

    def source(self, path: str, access: Access = "auto") -> File:
        cached = self.repository.cached(self._within(path))
        if cached is None:
            return self.remote.source(path, access)
        return LocalStore().source(cached, access)

    def write(
        self,
        path: str,
        chunks: Iterator[memoryview],
        wrote: Callable[[int], None],
        head: Callable[[], bytes] | None = None,
        instead_of: Sequence[str] = (),
        nbytes: int = 0,
    ) -> None:
        self.remote.write(path, chunks, wrote, head, instead_of, nbytes)

    def remove(self, path: str) -> None:
        self.remote.remove(path)

    def make_folder(self, path: str) -> None:
        """Nothing: a folder is there if it has a file."""

    def _within(self, path: str) -> str:
        return path.removeprefix(self.repository.root).strip("/")

    def _names(self, folder: str) -> set[str]:
        prefix = f"{self._within(folder)}/".removeprefix("/")
        return {
            file.removeprefix(prefix).partition("/")[0]
            for file in self.repository.files
            if file.startswith(prefix)
        }

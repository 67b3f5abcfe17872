"""What is broken, and which tests have to notice: nothing is left to the rest of the suite."""

from typing import Final, NamedTuple, final

_CRASHES: Final = "property_tests/test_crash_states.py"
_STATES: Final = f"{_CRASHES}::test_each_state_is_the_old_version_or_the_new_one"


@final
class Mutation(NamedTuple):
    """A text of a module, which is there once, and what it is replaced with."""

    name: str
    module: str
    old: str
    new: str
    tests: tuple[str, ...]


def _states(*kinds: str) -> tuple[str, ...]:
    return tuple(f"{_STATES}[{kind}]" for kind in kinds)


MUTATIONS: Final = (
    Mutation(
        "a file is not flushed",
        "storage/files.py",
        "        os.fsync(descriptor)\n        os.replace(",
        "        os.replace(",
        _states("file"),
    ),
    Mutation(
        "the folder of a file is not flushed",
        "storage/files.py",
        "        os.replace(temporary, target)\n    flush_name(path, folder)\n",
        "        os.replace(temporary, target)\n",
        _states("file"),
    ),
    Mutation(
        "a file is renamed before it is written and flushed",
        "storage/files.py",
        "        fill(descriptor, temporary)\n        if replaced is not None:\n"
        "            take_over(temporary, replaced)\n        os.fsync(descriptor)\n"
        "        os.replace(temporary, target)\n",
        "        os.replace(temporary, target)\n        fill(descriptor, target)\n"
        "        os.fsync(descriptor)\n",
        _states("file"),
    ),
    Mutation(
        "the part of a process is not flushed",
        "storage/together.py",
        "        os.fsync(self._descriptor)\n",
        "        pass\n",
        _states("two processes, folder"),
    ),
    Mutation(
        "the names in a new folder are not flushed",
        "storage/folders.py",
        "    take_over(temporary, replaced)\n    flush_folder(temporary)\n",
        "    take_over(temporary, replaced)\n",
        _states("folder"),
    ),
    Mutation(
        "folders are not exchanged, but renamed",
        "storage/folders.py",
        "    if renameat2 is not None:\n",
        "    if renameat2 is None:\n",
        _states("folder"),
    ),
    Mutation(
        "the old folder is removed before the exchange is flushed",
        "storage/folders.py",
        "            flush_name(path, parent)\n\n\ndef make_folder",
        "            pass\n    flush_name(path, parent)\n\n\ndef make_folder",
        _states("folder of one file"),
    ),
    Mutation(
        "folders of others are not flushed",
        "storage/folders.py",
        "    shutil.copystat(source, destination)\n    flush_folder(destination)\n",
        "    shutil.copystat(source, destination)\n",
        _states("folder, others' files"),
    ),
    Mutation(
        "copies of others' files are not flushed",
        "storage/folders.py",
        "            with flushing(destination):\n",
        "            if destination:\n",
        _states("folder, others' files, no links"),
    ),
    Mutation(
        "permissions are set after the flush",
        "storage/files.py",
        "            take_over(temporary, replaced)\n        os.fsync(descriptor)\n",
        "            os.fsync(descriptor)\n            take_over(temporary, replaced)\n",
        _states("file, for a group"),
    ),
    Mutation(
        "a new folder is private only later",
        "storage/folders.py",
        "os.mkdir(temporary, 0o777 if replaced is None else 0o700)",
        "os.mkdir(temporary)",
        _states("folder, private"),
    ),
    Mutation(
        "the index is written first",
        "checkpoint/indexed.py",
        "    files.begin()\n    try:\n",
        "    files.begin()\n    files.commit()\n    try:\n",
        _states("index last"),
    ),
    Mutation(
        "an index is not flushed away",
        "checkpoint/indexed.py",
        "            self._store.flush(self._folder)\n",
        "",
        _states("index last, no tensor"),
    ),
    Mutation(
        "a part of a set is taken for the whole",
        "checkpoint/choosing.py",
        "    return None if is_part(name) else name\n",
        "    return name\n",
        _states("index last, nothing before"),
    ),
    Mutation(
        "litter is not removed",
        "storage/files.py",
        "    remove_litter(target)\n",
        "",
        _states("file, litter"),
    ),
    Mutation(
        "the first process decides for all",
        "processes/agreement.py",
        '/came", 1) == self.processes:\n',
        '/came", 1) == 1:\n',
        ("tests/unit/processes/test_agreement.py::"
         "test_the_decision_is_made_of_the_values_of_all_in_their_order",),
    ),
    Mutation(
        "nobody waits until all have written",
        "checkpoint/distributed.py",
        "            across.alive()\n        across.agree(None, lambda _: None)\n        if any(",
        "            across.alive()\n        if any(",
        ("tests/unit/checkpoint/test_outcomes.py::"
         "test_if_a_process_raises_or_hangs_all_have_the_same_error[while writing-1-hangs]",),
    ),
    Mutation(
        "a digest is not compared",
        "reading/verified.py",
        "        if found != wanted:\n",
        "        if len(found) != len(wanted):\n",
        ("tests/unit/reading/test_integrity.py::"
         "test_every_flipped_bit_of_a_small_file_is_reported_for_its_leaf",),
    ),
    Mutation(
        "the time of a file is not compared",
        "reading/descriptors.py",
        "(found.st_mtime_ns, found.st_size) != (self.status.st_mtime_ns, self.status.st_size)",
        "found.st_size != self.status.st_size",
        ("tests/unit/storage/test_access.py::test_a_file_that_was_rewritten_in_place_is_an_error",),
    ),
    Mutation(
        "the ETag of a file elsewhere is not asked for",
        "reading/askers.py",
        '            return {"If-Match": etag}\n',
        "            return {}\n",
        ("tests/unit/storage/test_http.py::"
         "test_a_file_that_is_replaced_is_refused_by_its_server",),
    ),
    Mutation(
        "the data of two tensors may overlap",
        "format/header.py",
        "        if tensor.begin != reached:\n",
        "        if tensor.begin > reached:\n",
        ("tests/unit/format/test_header.py::"
         "test_a_hostile_header_is_refused_at_once_with_the_reason",),
    ),
)  # fmt: skip

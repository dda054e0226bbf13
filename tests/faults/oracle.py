"""What must hold of a state directory after any fault, worked out from the files that were dropped and nothing else.

Every file dropped is committed exactly once (by content; its pixels are those of a fresh decode), or refused or a
duplicate with its reason, or still waiting in the folder. What was acknowledged is there until it leaves by policy.
The serving ref names a complete version.
"""

import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.checking import check_state, repair_state
from storage.durable.digest import digest_of
from storage.errors import RefusedImage
from storage.layout import StateLayout
from storage.media.images import crc32_of
from storage.registry.refs import Refs
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore
from storage.source.labelled import LabelledSet
from tests.faults import world
from tests.storage.registry.mirrored import what_a_reader_finds


class Oracle:
    """The promise, held against one state directory again and again; remembers what it saw committed."""

    def __init__(self, root: Path, files: Mapping[str, bytes] | None = None, capacity: int = world.CAPACITY) -> None:
        """`files`: all that was ever dropped, by name. `capacity`: the most frames that the buffer ever held."""
        self.root = root
        self.files: dict[str, bytes] = {}
        self._capacity = capacity
        self._ever: dict[str, int] = {}
        self._contents = {digest_of(content): content for content in map(world.image, range(world.NUMBERS))}
        self.drop(files or {})

    def drop(self, files: Mapping[str, bytes]) -> None:
        """These files were dropped too."""
        self.files |= files
        self._contents |= {digest_of(content): content for content in files.values()}

    def check(self, at: Path | None = None, *, tidy: bool = False) -> None:
        """The promise holds. `at`: another place that the state directory and the drop folder were brought to.

        `tidy`: those who own the folders have worked there since the fault, so nothing unfinished may lie about.
        """
        root = at or self.root
        layout = StateLayout(root / "state")
        self._check_state(layout, tidy)
        if layout.catalog.exists() and layout.frames_zarr.exists():
            self._check_frames(root, layout)
        self._check_registry(layout)
        self._check_mirrors(root)
        self._check_rounds(layout)
        self._check_source(layout)

    def check_finished(self, at: Path | None = None) -> None:
        """The promise, once everything was taken: no good file is missing, every bad one has its reason."""
        self.check(at, tidy=True)
        root = at or self.root
        ever, states = _tables(StateLayout(root / "state"))
        for name, content in self.files.items():
            refused, state = reason_to_refuse(content), states[name]
            if refused is None:
                assert state[0] in ("committed", "duplicate"), f"{name}: {state}"
                assert digest_of(content) in ever, f"{name}: never committed"
            else:
                assert state[:2] == ("refused", refused), f"{name}: {state}, expected {refused}"
        assert set(ever) <= {digest_of(content) for content in self.files.values()}, "a frame of no file"
        doubles = Counter(state[2] for state in states.values() if state[0] == "committed")
        assert set(doubles.values()) <= {1}, f"committed twice: {doubles}"

    def repair(self, at: Path | None = None) -> None:
        """`mfmd check --repair` repairs what a fault left and harms nothing."""
        layout = StateLayout((at or self.root) / "state")
        left = repair_state(layout, read_data=True).left
        assert not left, left
        self.check(at)

    def _check_state(self, layout: StateLayout, tidy: bool) -> None:
        problems = check_state(layout, read_data=True)
        if not world.acknowledged(self.root, "moved"):
            # The process died between the history's line and the very first ref: `mfmd check --repair` goes on.
            problems = [problem for problem in problems if problem.code != "serving_missing"]
        errors = [
            problem for problem in problems if problem.severity == "error" or (tidy and problem.code != "history_torn")
        ]
        assert not errors, errors

    def _check_frames(self, root: Path, layout: StateLayout) -> None:
        ever, states = _tables(layout)
        found = _read_all(layout, self._contents)
        self._hold_frames(found, ever)
        for name, (state, reason, digest) in states.items():
            assert state in ("committed", "duplicate", "refused", "skipped")
            assert (state in ("committed", "duplicate")) or reason, f"{name}: {state} without a reason"
            assert (state not in ("committed", "duplicate")) or digest in ever, f"{name}: {state}, but was never stored"
        for name, content in self.files.items():
            path = root / "drop" / name
            places = (path, root / "done" / name, root / "quarantine" / name)
            lies_there = any(place.is_file() and place.read_bytes() == content for place in places)
            assert lies_there or not (root / "done").exists(), f"{name}: lost on its way out of the folder"
            assert lies_there or name in states, f"{name}: neither in the folder nor known"
            if states.get(name, ("",))[0] == "refused":
                assert reason_to_refuse(content) is not None, f"{name}: a good file was refused: {states[name]}"
        self._ever = ever if root == self.root else self._ever

    def _hold_frames(self, found: dict[str, FrameRecord], ever: dict[str, int]) -> None:
        """What is in the buffer, against what was acknowledged and what was seen before."""
        assert len({record.slot for record in found.values()}) == len(found), "two frames in one slot"
        assert {digest: record.id for digest, record in found.items()}.items() <= ever.items()
        assert len(set(ever.values())) == len(ever), "two contents with one frame number"
        lost = set(world.acknowledged(self.root, "frame")) - set(ever)
        assert not lost, f"acknowledged and gone: {lost}"
        assert self._ever.items() <= ever.items(), "what was committed once is not any more"
        if len(ever) > len(found):
            assert len(found) >= min(self._capacity, world.CAPACITY), "frames left a buffer that was not full"
        leases = world.acknowledged(self.root, "lease")
        held = leases[len(leases) - leases[::-1].index("released") :] if "released" in leases else leases
        assert set(held) <= set(found), "a leased frame was evicted"

    def _check_registry(self, layout: StateLayout) -> None:
        registry = CheckpointRegistry(layout.checkpoints)
        for version in registry.versions():
            registry.verify(version)
        serving, previous = Refs(registry.root / "refs").read("serving"), registry.ref("previous")
        for ref in (serving, previous):
            if ref is not None:
                registry.verify(ref.version)
        moved = world.acknowledged(self.root, "moved")
        if moved:
            moves = [fact.split() for fact in world.acknowledged(self.root, "mov", whole=True)]
            last = max(index for index, (what, _) in enumerate(moves) if what == "moved")
            possible = {version for _, version in moves[last:]}
            assert serving is not None and str(serving.version) in possible, f"{serving} serves, expected {possible}"
        for version in moved:
            assert any(str(event.version) == version for event in registry.history()), (
                f"no history of version {version}"
            )

    def _check_mirrors(self, root: Path) -> None:
        """A reader finds one whole version, once there was one."""
        for mirror in world.mirrors(root):
            found = what_a_reader_finds(mirror)
            assert found is not None or not world.acknowledged(self.root, f"mirrored {mirror.name}")

    def _check_rounds(self, layout: StateLayout) -> None:
        store = RoundStore(layout.rounds)
        for number in store.numbers():
            folder = store.folder(number)
            assert folder.spec().round == folder.record().round == number
            for step in folder.states.steps():
                assert (folder.path / "state" / f"{step:06d}" / "state.json").read_text() == str(step)
            if str(number) in world.acknowledged(self.root, "verdict"):
                assert folder.verdict() is not None and folder.scores() is not None
                assert folder.record().starts, "a start was forgotten"
                assert folder.record().stage == "failed"

    def _check_source(self, layout: StateLayout) -> None:
        counts = [int(count) for count in world.acknowledged(self.root, "source")]
        if LabelledSet.exists(layout):
            found = LabelledSet.open(layout)
            assert len(found) >= max(counts, default=0)
            for index in range(len(found)):
                assert found.images.read(index).any() and (found.labels.read(index) == 1).all()
        else:
            assert not counts, "an imported set is gone"


def reason_to_refuse(content: bytes) -> str | None:
    """Why a fresh decode refuses the content; none when it is good."""
    try:
        world.fitted(content)
    except RefusedImage as error:
        return error.reason
    return None


def _read_all(layout: StateLayout, contents: Mapping[str, bytes]) -> dict[str, FrameRecord]:
    """Every committed frame by digest, as a reader sees it before any recovery; pixels and checksum are right."""
    if not _tables(layout)[0]:
        return {}
    with FrameBuffer.open(layout, world.settings(layout.root.parent).buffer, writable=False) as reader:
        records = reader.records()
        for record in records:
            assert record.digest in contents, f"{record}: of no file that was dropped"
            pixels, expected = reader.read(record), world.fitted(contents[record.digest])
            assert np.array_equal(pixels, expected.pixels), f"{record}: not what a fresh decode gives"
            assert record.crc32 == crc32_of(expected.pixels)
            assert (record.valid_height, record.valid_width) == (expected.valid_height, expected.valid_width)
    assert len({record.digest for record in records}) == len(records)
    return {record.digest: record for record in records}


def _tables(layout: StateLayout) -> tuple[dict[str, int], dict[str, tuple[str, str, str]]]:
    """Digest -> frame number of all that was ever committed, and name -> (state, reason, digest) of every file."""
    with closing(sqlite3.connect(f"{layout.catalog.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        if "files" not in tables:
            return {}, {}
        ever = dict(connection.execute("SELECT digest, frame FROM digests"))
        rows = connection.execute("SELECT path, state, reason, digest FROM files").fetchall()
    return ever, {path: (state, reason, digest) for path, state, reason, digest in rows}

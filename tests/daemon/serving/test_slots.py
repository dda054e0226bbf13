"""Slots: leases, flips, and that nobody's weights are overwritten."""

import threading
from pathlib import Path

import pytest

from adapters.checkpoints.checkpoint import make_manifest
from daemon.serving.errors import NotReady, VersionNotLoaded
from daemon.serving.versions.slots import Resident, Slots
from tests.daemon.serving.serving_world import served_form, settings_for, tiny_network, wait_until

MANIFEST = make_manifest(settings_for(Path("unused")), origin="pretrain")


def resident(version: int) -> Resident:
    return Resident(version, MANIFEST, served_form(tiny_network(version)))


def test_nothing_live_is_not_ready() -> None:
    slots = Slots()
    assert slots.live is None and slots.versions == ()
    with pytest.raises(NotReady), slots.lease():
        pass
    assert slots.retire_idle(0.0) is None
    assert not slots.flip_to(1)


def test_install_keeps_the_version_before_and_flip_exchanges_them() -> None:
    slots = Slots()
    slots.install(resident(1))
    slots.install(resident(2))
    assert slots.versions == (2, 1)
    assert slots.flip_to(1)
    assert slots.versions == (1, 2)
    assert not slots.flip_to(7)
    with pytest.raises(RuntimeError, match="version 2"):
        slots.install(resident(3))


def test_a_lease_outlives_flips_and_its_weights_are_not_given_away() -> None:
    slots = Slots()
    first = resident(1)
    slots.install(first)
    with slots.lease() as leased:
        slots.install(resident(2))
        with slots.lease() as now, slots.lease(1) as by_number:
            assert leased is first and by_number is first and now.version == 2
        assert slots.retire_idle(0.01) is None, "the network of a leased version was given away"
        assert slots.versions == (2,)
        with pytest.raises(VersionNotLoaded, match="loaded: 2"), slots.lease(1):
            pass
    slots.install(resident(3))
    retired = slots.retire_idle(0.01)
    assert retired is not None and retired.version == 2


def test_retiring_waits_for_the_last_holder() -> None:
    slots = Slots()
    slots.install(resident(1))
    given: list[Resident | None] = []
    with slots.lease() as leased:
        slots.hold(leased)
        slots.install(resident(2))
        waiting = threading.Thread(target=lambda: given.append(slots.retire_idle(20.0)))
        waiting.start()
        wait_until(lambda: slots.versions == (2,), "version 1 is taken out")
    assert not given, "one holder is still there"
    slots.release(leased)
    waiting.join(20.0)
    assert given == [leased]


def test_holding_what_nobody_leased_is_a_bug_and_says_so() -> None:
    slots = Slots()
    loose = resident(1)
    with pytest.raises(RuntimeError, match="not leased"):
        slots.hold(loose)

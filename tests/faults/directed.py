"""Directed schedules: what a machine that draws its moves comes upon too seldom to be relied on."""

from __future__ import annotations

from unittest import mock

from tests.faults import machine as machines
from tests.faults.gates import UNLIMITED, Fault
from tests.faults.machine import N_KEYS, StoreMachine, prepared


def publish_from_a_damaged_chunk(how: int) -> None:
    """A chunk that is to be copied on is damaged first: flipped, cut or lost (``how`` 0, 1, 2).

    Raises
    ------
    AssertionError
        The damage was handed on, or another promise was broken.
    """
    with prepared(), mock.patch.object(machines, "note"), (machine := StoreMachine()).patches:
        for number in range(N_KEYS - 1):  # they fill one chunk
            _run(machine, "writer", number)
        _run(machine, "publisher")
        machine.clock.milliseconds += 1
        machine._damage_snapshot(how)
        _run(machine, "writer", N_KEYS - 1)
        _run(machine, "publisher")
        assert len(machine.model.snapshots) == 2, "the second publisher made no snapshot"
        _run(machine, "reader", 1)
        machine.teardown()


def _run(machine: StoreMachine, kind: str, number: int = 0) -> None:
    """A job from its beginning to its end."""
    machine._start(kind, number)
    machine._advance(machine.actors[-1], UNLIMITED, Fault.NONE)

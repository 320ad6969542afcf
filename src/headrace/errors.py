"""The exception tree. Every error names the field, the value and the remedy.

HeadraceError
├── DeclarationError      a line's YAML is wrong                      exit 2
├── InputError            an event file or a request is wrong         exit 3
├── EnvironmentFault      Java, a port, the disk, a running stack     exit 4
├── ConflictError         another writer advanced the line first      exit 5
├── IntegrityError        stored bytes do not match their checksum    exit 6
└── GateRejected          evidence did not suffice                    exit 7
"""

from __future__ import annotations

import reprlib
from typing import Final

_SHORT: Final = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


class HeadraceError(Exception):
    """Root of all errors that Headrace raises on purpose."""

    exit_code = 1


class DeclarationError(HeadraceError):
    """A line's YAML does not say what it has to, or says it wrongly."""

    exit_code = 2


class InputError(HeadraceError):
    """Outside data (a file, an event, a request) does not fit its declaration."""

    exit_code = 3


class EnvironmentFault(HeadraceError):
    """The machine lacks something: Java, a free port, disk space, a stopped stack."""

    exit_code = 4


class ConflictError(HeadraceError):
    """A compare-and-swap lost: the line moved on since it was read."""

    exit_code = 5


class IntegrityError(HeadraceError):
    """Stored bytes are torn, missing or differ from their checksum."""

    exit_code = 6


class GateRejected(HeadraceError):
    """A gate said no; the reasons stand in the message."""

    exit_code = 7


def shortened(value: object) -> str:
    """A value as an error shows it: in full where that is short.

    An alias in YAML may stand for a list of lists of … a million items.
    """
    return _SHORT.repr(value)

"""Resident memory of a process, as Linux reports it."""

from __future__ import annotations

from pathlib import Path

_PROCESSES = Path("/proc")


def resident_memory(process: int | None = None) -> int:
    """Resident bytes of a process now, by default of this one; zero if the system does not report them."""
    return _status("VmRSS", process)


def peak_memory() -> int:
    """Largest number of resident bytes since :func:`reset_peak_memory`; zero if the system does not report it."""
    return _status("VmHWM")


def reset_peak_memory() -> None:
    """Count the peak from now on, if the system allows it."""
    try:
        (_PROCESSES / "self/clear_refs").write_text("5")
    except OSError:
        return


def _status(key: str, process: int | None = None) -> int:
    try:
        lines = (_PROCESSES / str(process or "self") / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)

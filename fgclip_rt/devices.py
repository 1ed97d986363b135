"""Names of devices: ``auto``, ``cpu``, ``cuda``, and ``cuda:1`` and so on for other GPUs than the first."""

from __future__ import annotations

from .errors import ArgumentError

DEVICES = ("auto", "cpu", "cuda")


def parse_device(device: str) -> tuple[str, int]:
    """One of :data:`DEVICES`, and the index of the GPU as CUDA counts them; ``cuda:1`` gives ``("cuda", 1)``.

    Raises:
        ArgumentError: there is no device of that name.
    """
    kind, colon, index = device.partition(":")
    if device in DEVICES:
        return device, 0
    if kind == "cuda" and colon and index.isascii() and index.isdigit() and int(index) < 1024:
        return kind, int(index)
    raise ArgumentError(
        f"device {device!r} is unknown; choose one of {', '.join(DEVICES)}, or a GPU by its number, such as cuda:1."
    )


def gpu_name(index: int) -> str:
    """The name of a GPU as a device."""
    return f"cuda:{index}" if index else "cuda"

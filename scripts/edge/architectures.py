"""The kinds of processors that packages are made for, and what each is called where."""

import platform
from typing import NamedTuple


class Architecture(NamedTuple):
    """``machine`` is what ``uname -m`` says, ``debian`` and ``wheel`` what packages are named.

    ``preset`` is CMake's for building on another architecture, where there is one.
    """

    machine: str
    debian: str
    wheel: str
    preset: str | None

    @property
    def is_here(self) -> bool:
        """Whether it is this machine's."""
        return platform.machine() == self.machine


ARCHITECTURES = {
    "x86-64": Architecture("x86_64", "amd64", "manylinux_2_28_x86_64", None),
    "arm64": Architecture("aarch64", "arm64", "manylinux_2_28_aarch64", "arm64"),
}

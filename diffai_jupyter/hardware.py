"""Hardware that a model is to run on: peak rates of profiles, or numbers of the user."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from diffai_jupyter.errors import SettingError
from diffai_jupyter.wording import close_matches, show_name


@dataclass(frozen=True, slots=True)
class Hardware:
    """The roofs of one device.

    Parameters
    ----------
    name : str
        Profile, or the numbers as they were given.
    flops : float
        Peak dense floating-point operations per second in 16 bits (32 bits on a CPU).
    bandwidth : float
        Peak bytes per second from memory.
    overhead : float
        Seconds that starting one module takes.
    basis : str
        Where the numbers come from.
    width : int
        Bytes of an activation and of a number in the key/value cache.
    """

    name: str
    flops: float
    bandwidth: float
    overhead: float
    basis: str
    width: int = 2

    def __str__(self) -> str:
        return self.name


_KERNEL = 5e-6

PROFILES: Mapping[str, Hardware] = {
    hardware.name: hardware
    for hardware in (
        Hardware("generic", 312e12, 2.0e12, _KERNEL, "a data-center GPU: 312 TFLOPS, 2.0 TB/s"),
        Hardware("a100", 312e12, 2.039e12, _KERNEL, "NVIDIA A100 80GB SXM data sheet, dense bf16"),
        Hardware("h100", 989e12, 3.35e12, _KERNEL, "NVIDIA H100 SXM data sheet, dense bf16"),
        Hardware("h200", 989e12, 4.8e12, _KERNEL, "NVIDIA H200 data sheet, dense bf16"),
        Hardware("l4", 121e12, 300e9, _KERNEL, "NVIDIA L4 data sheet, dense fp16"),
        Hardware("t4", 65e12, 320e9, _KERNEL, "NVIDIA T4 data sheet, fp16"),
        Hardware("rtx4090", 165e12, 1.008e12, _KERNEL, "NVIDIA Ada whitepaper, dense fp16 with fp32 accumulation"),
        Hardware("cpu", 1e12, 80e9, 2e-6, "a server CPU: 1 TFLOPS in f32, 80 GB/s", width=4),
    )
}


def hardware_of(text: str, source: str = "--device") -> Hardware:
    """Return the profile, or what ``FLOPS,BYTES_PER_SECOND[,SECONDS_PER_OP]`` describes.

    Raises
    ------
    SettingError
        If it is neither.

    Examples
    --------
    >>> hardware_of("h100").bandwidth, hardware_of("1e12, 5e10").flops
    (3350000000000.0, 1000000000000.0)
    """
    name = text.strip().lower()
    if name in PROFILES:
        return PROFILES[name]
    try:
        numbers = [float(part) for part in name.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) in (2, 3) and all(math.isfinite(n) and n > 0 for n in numbers[:2]) and min(numbers) >= 0:
        return Hardware(show_name(name), numbers[0], numbers[1], numbers[2] if len(numbers) > 2 else _KERNEL, source)
    msg = (
        f"'{show_name(text)}' from {source} is no hardware.{close_matches(name, list(PROFILES))} Choose one of "
        f"{', '.join(PROFILES)}, or write FLOPS,BYTES_PER_SECOND[,SECONDS_PER_OP] such as 312e12,2e12."
    )
    raise SettingError(msg)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where and how a model is to run.

    Parameters
    ----------
    hardware : Hardware
        The device.
    context : int, optional
        Tokens in the context; None where the user did not say.
    batch : int
        Sequences or images at a time.
    """

    hardware: Hardware = PROFILES["generic"]
    context: int | None = None
    batch: int = 1

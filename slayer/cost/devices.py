"""GPUs by name: what they hold and how fast they multiply. One table for estimates and for MFU in the metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU; `word` is what its own name holds, `peak_flops` dense bf16 per second.

    `memory_bytes` are the gigabytes of the data sheet as 10⁹ bytes; a driver gives about 7 % more (they are GiB), which is left to the CUDA
    context, NCCL and the allocator's gaps.
    """

    name: str
    word: str
    memory_bytes: float
    peak_flops: float

    @property
    def memory_name(self) -> str:
        """80 GB."""
        return f"{self.memory_bytes / 1e9:.0f} GB"


DEVICES = {
    name: Device(name=name, word=word, memory_bytes=gigabytes * 1e9, peak_flops=teraflops * 1e12)
    for name, word, gigabytes, teraflops in (
        ("A100", "A100", 80, 312.0),
        ("H100", "H100", 80, 989.0),
        ("H200", "H200", 141, 989.0),
        ("B200", "B200", 180, 2250.0),
        ("L40S", "L40S", 48, 362.0),
        ("RTX4090", "4090", 24, 165.0),
    )
}
"""NVIDIA's data sheets: A100 80GB, H100 SXM, H200 SXM, HGX B200 (per GPU), L40S, GeForce RTX 4090 (Ada whitepaper, fp32 accumulation)."""


def peak_flops(device_name: str, configured_teraflops: float | None) -> float | None:
    """Peak FLOP per second of one device by a word of its name, None where unknown (a CPU without engine.peak_teraflops)."""
    if configured_teraflops is not None:
        return configured_teraflops * 1e12
    return next((device.peak_flops for device in DEVICES.values() if device.word in device_name), None)

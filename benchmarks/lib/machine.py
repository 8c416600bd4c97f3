"""What a program runs on."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

import diffopt

NUMERICS = ("diffopt", "jax", "jaxlib", "optax", "flax", "numpy")  # decide what comes out
PACKAGES = (*NUMERICS, "scikit-learn", "blackjax", "torch", "posteriors", "sgmcmcjax")


def describe() -> dict[str, Any]:
    """Date, processor, devices, and the versions of the packages that are installed."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu(),
        "cores": cores(),
        "device": device(),
        "backend": jax.default_backend(),
        "processes": jax.process_count(),
        "versions": {"python": platform.python_version()} | versions(PACKAGES),
    }


def line(machine: dict[str, Any]) -> str:
    """A description in one line."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['date']}, {machine['device']}, {machine['cpu']}, {machine['cores']} cores,"
        f" {packages}"
    )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of the packages that are installed."""
    installed = {}
    for package in packages:
        try:
            own = package == "diffopt"  # whose distribution has another name
            installed[package] = diffopt.__version__ if own else importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def device() -> str:
    """The number and kind of the devices of all hosts."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpuinfo(name: str) -> str:
    """What Linux says of the first CPU under this name, or nothing."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith(name)), "")


def cpu() -> str:
    """The model name of the CPU."""
    return cpuinfo("model name") or platform.processor()


def has_wide_vectors() -> bool:
    """Whether JAX computes on a CPU with vectors of 512 bits, which XLA uses where it is asked."""
    return jax.default_backend() == "cpu" and "avx512f" in cpuinfo("flags").split()

"""Devices, dtypes and memory sizes: their names, defaults and checks."""

import os
import re
import sys
import threading

from bge_integrations.errors import ForkedProcessError

_DTYPES = {
    "fp32": "float32",
    "float": "float32",
    "float32": "float32",
    "fp16": "float16",
    "half": "float16",
    "float16": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "int8": "int8",
}
_DEFAULT_DTYPE = {"cpu": "float32", "mps": "float32", "cuda": "float16"}
"""FlagEmbedding too computes in float32 on a CPU and in float16 on a GPU (its use_fp16 default)."""
_DEFAULT_BATCH_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 16384}
_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


_GPU_FILES = {
    "linux": ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvmap", "/dev/dxg", "/dev/kfd"),
    "win32": (r"C:\Windows\System32\nvcuda.dll",),
}
"""Files of a GPU's driver, by `sys.platform`: NVIDIA's, Jetson's, Windows' for Linux, AMD's."""

_IMPORTED_BY_LOADS = ("torch", "transformers", "sentence_transformers", "openvino", "bge_integrations")
_half_imported = threading.Event()


def note_fork_during_load() -> None:
    """Note, in a forked child whose parent was loading, an import that the fork cut in two: it never ends here."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in _IMPORTED_BY_LOADS]
    if any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in modules):
        _half_imported.set()


def normalize_dtype(dtype: object) -> str | None:
    """Return one name for "fp16", "float16" and `torch.float16`; None stays None.

    Raises:
        ValueError: The dtype is not float32, float16, bfloat16 or int8.
    """
    if dtype is None:
        return None
    name = _DTYPES.get(str(dtype).removeprefix("torch."))
    if name is None:
        raise ValueError(
            f"dtype={dtype!r} is not known. Use float32, float16, bfloat16, int8 (with OpenVINO), or None for the "
            "device's own."
        )
    return name


def normalize_device(device: object) -> str | None:
    """Return one name for "cuda", "cuda:0" and `torch.device("cuda")`; None stays None. No device is touched.

    Raises:
        ValueError: The name is not "cpu", "mps", "cuda" or "cuda:N".
    """
    if device is None:
        return None
    name = {"cuda": "cuda:0", "cpu:0": "cpu", "mps:0": "mps"}.get(str(device), str(device))
    if not re.fullmatch(r"cpu(:\d+)?|mps|cuda:\d+", name):
        raise ValueError(
            f'device={device!r} is not known. Use "cpu", "mps", "cuda", "cuda:N", or None for the best one.'
        )
    return name


def normalize_devices(device: object) -> tuple[str | None, ...]:
    """Return the names of one device, or of a list of devices with a replica each.

    "cpu" twice stands for two replicas on the CPU, named "cpu" and "cpu:1".

    Raises:
        ValueError: A name is not known or comes twice, or the list is empty.
    """
    if not isinstance(device, list | tuple):
        return (normalize_device(device),)
    names = [normalize_device(one) for one in device]
    for index, name in enumerate(names):
        if name == "cpu" and "cpu" in names[:index]:
            names[index] = f"cpu:{index}"
    if not names or None in names or len(set(names)) < len(names):
        raise ValueError(f'device={device!r} must be one device or a list of different ones, as ["cuda:0", "cuda:1"].')
    return tuple(names)


def resolve_device(device: str | None) -> str:
    """Return the device, once it is known to be there; None takes cuda, else mps, else cpu.

    Raises:
        ForkedProcessError: This process was forked from one that had used CUDA, or was importing torch.
        ValueError: The machine has no such device.
    """
    if _half_imported.is_set():
        raise ForkedProcessError(
            "This process was forked while its parent loaded its first model, so torch is only half imported. Start "
            'workers with multiprocessing.get_context("spawn"), or fork before or after that load.'
        )
    if device == "cpu" or (device is None and not _may_have_gpu()):
        return "cpu"
    import torch

    if torch.cuda._is_in_bad_fork():  # noqa: SLF001 - asks without touching the GPU
        raise ForkedProcessError(
            "This process was forked from one that had used CUDA, so it cannot use the GPU. Start workers with "
            'multiprocessing.get_context("spawn"), or load models only after the fork.'
        )
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device is None:
        return "cuda:0" if cuda else "mps" if mps else "cpu"
    kind = device.partition(":")[0]
    there = {"cpu": True, "mps": mps}.get(
        kind, cuda and int(device.rpartition(":")[2] or 0) < torch.cuda.device_count()
    )
    if not there:
        raise ValueError(f'device="{device}" is not on this machine. Use device=None for the best one there is.')
    return device


def _may_have_gpu() -> bool:
    """Return False where there can be no GPU, without an import of torch, which takes seconds."""
    files = _GPU_FILES.get(sys.platform)
    return files is None or any(map(os.path.exists, files))


def default_dtype(device: str) -> str:
    """Return the dtype of weights on `device` where the caller names none."""
    return _DEFAULT_DTYPE[device.partition(":")[0]]


def default_batch_tokens(device: str) -> int:
    """Return the most tokens of a forward on `device` where the caller names no number."""
    return _DEFAULT_BATCH_TOKENS[device.partition(":")[0]]


def total_bytes(device: str) -> int:
    """Return the device's memory in bytes; without CUDA, the machine's."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def parse_budget(budget: int | float | str | None) -> int | float | None:
    """Parse a cache's budget: return bytes as an int, a fraction of the device as a float, None for no limit.

    Raises:
        ValueError: The budget is not a positive number of bytes, a size such as "20GiB", or a fraction up to 1.0.
    """
    if budget is None:
        return None
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?B|)\s*", budget.upper())
        if match and (size := int(float(match[1]) * _UNITS[match[2]])):
            return size
    elif (type(budget) is int and budget > 0) or (type(budget) is float and 0 < budget <= 1):
        return budget
    raise ValueError(f'budget={budget!r} is not a size. Use bytes, a size such as "20GiB", or a fraction such as 0.5.')

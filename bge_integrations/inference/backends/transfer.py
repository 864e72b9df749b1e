"""Copies to and from a device that wait for nothing: on CUDA they run beside what is being computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.errors import DeviceLostError
from bge_integrations.inference.backends.base import Launched
from bge_integrations.inference.call import Rows


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The numbers on a device."""
    host = torch.from_numpy(array)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


@contextmanager
def device_errors() -> Iterator[None]:
    """Tells an error after which CUDA computes nothing more in this process from those of one batch."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("CUDA error"):
            raise
        raise DeviceLostError(
            f"The device failed, and computes nothing more in this process; restart it. ({error})"
        ) from error


class HostCopy:
    """A tensor on its way to the host's memory, in float32."""

    def __init__(self, values: torch.Tensor) -> None:
        values = values.float()
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.current_stream(values.device).record_event()
        else:
            self._host = values.cpu()

    def wait(self) -> NDArray[np.float32]:
        """The numbers, once they are there."""
        if self._arrived is not None:
            with device_errors():
                self._arrived.synchronize()
        array: NDArray[np.float32] = self._host.numpy()
        return array


def to_host(rows: torch.Tensor) -> Rows | Launched:
    """Rows for the queue: at once from a CPU, awaited from CUDA."""
    copy = HostCopy(rows)
    return Launched(copy.wait) if rows.is_cuda else copy.wait()

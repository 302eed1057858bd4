"""Where a training runs: the CPU, one GPU, or several processes that share each step's clips.

torchrun --nproc-per-node 4 -m pipeline.cli train CONFIG --out DIR
"""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from models.errors import DataError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class Place:
    """A device, and this process's place among those that train together.

    Attributes:
        rank: of this process, 0 the one that validates, logs and saves.
        processes: how many train together.
    """

    device: torch.device
    rank: int = 0
    processes: int = 1

    @classmethod
    def choose(cls, name: str, threads: int) -> Place:
        """Find the device and, started by torchrun, the other processes.

        Args:
            name: "auto", "cpu" or "cuda".
            threads: of PyTorch on the CPU.

        Raises:
            DataError: there is no GPU, or fewer than processes on this machine.
        """
        torch.set_num_threads(threads)
        cv2.setNumThreads(1)
        _keep_freed_memory()
        wants_gpu = torch.cuda.is_available() if name == "auto" else name == "cuda"
        together = distributed.is_torchelastic_launched()
        local = distributed.get_node_local_rank() if together else 0
        gpus = torch.cuda.device_count()
        if wants_gpu and local >= gpus:
            raise DataError(f"device is {name}: this machine has {gpus} GPUs that PyTorch can use")
        device = torch.device("cuda", local) if wants_gpu else torch.device("cpu")
        if wants_gpu:
            torch.cuda.set_device(device)
            torch.backends.cudnn.benchmark = True
        if not together:
            return cls(device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if wants_gpu else "gloo")
        return cls(device, distributed.get_rank(), distributed.get_world_size())

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def ready(self, network: AnyModule) -> AnyModule:
        """The network on the device, channels last: kernels are fastest so on both."""
        return network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def share(self, network: nn.Module, *, unused: bool) -> nn.Module:
        """The network, with gradients that are means over all processes.

        Args:
            unused: some parameters take no part in the loss.
        """
        if self.processes == 1:
            return network
        if self.on_gpu:  # statistics over all clips of the step; there is no such layer for the CPU
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        devices = [self.device] if self.on_gpu else None
        return DistributedDataParallel(network, devices, find_unused_parameters=unused)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.processes > 1:
            distributed.all_reduce(values)
            values /= self.processes
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.processes > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Nothing will be trained together any more."""
        if self.processes > 1:
            distributed.destroy_process_group()

    def machine(self) -> dict[str, str | int]:
        """The class of this machine, for a model's specification."""
        facts: dict[str, str | int] = {"processor": _processor(), "cores": os.cpu_count() or 1}
        if self.on_gpu:
            facts["gpu"] = torch.cuda.get_device_name(self.device)
        if self.processes > 1:
            facts["processes"] = self.processes
        return facts


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: else each large tensor costs its page faults anew, a fifth of a step."""
    with suppress(OSError, AttributeError):  # another C library has no mallopt
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        for option, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 2**28)):
            libc.mallopt(option, value)

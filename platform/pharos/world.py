"""The processes that train one trial together, seen from one of them.

A trial of one worker has a world of one, in which everything here is free and needs no process group.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, Store, TCPStore

_SIOCGIFADDR = 0x8915  # Linux' request for the address of a network interface


class World:
    """One process's place among a trial's workers.

    Args:
        rank: Which of them this is; rank 0 reports, tracks and commits checkpoints.
        size: How many they are; more than one need a process group, see `join`.
        device: Where this worker's learners live.
        board: Where they leave each other notes, from any thread; more than one need it.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None, board: Store | None = None):
        self.rank = rank
        self.size = size
        self.device = device or torch.device("cpu")
        self._board = board
        self.loss_weight = 1.0
        """What makes the mean over the workers' losses one over the whole batch, if their shares differ in size."""

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over the workers: the same numbers on each, so that all decide alike from them."""
        return dict(zip(values, self._reduced(list(values.values()), dist.ReduceOp.SUM, self.size), strict=True))

    def most(self, values: list[float]) -> list[float]:
        """The largest of each value over the workers."""
        return self._reduced(values, dist.ReduceOp.MAX, 1)

    def average(self, tensor: Tensor) -> None:
        """Replaces a tensor by its mean over the workers, on its own device."""
        dist.all_reduce(tensor)
        tensor /= self.size

    def gather(self, value: Any) -> list[Any]:
        """Every worker's small value, by rank, on each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Waits for all of them."""
        self.most([0.0])

    def post(self, key: str, note: str) -> None:
        """Leaves a note for whoever takes it; unlike all above it waits for nobody and any thread may call it."""
        assert self._board is not None
        self._board.set(key, note)

    def take(self, key: str) -> str | None:
        """Takes a note away; None if it is not there yet."""
        assert self._board is not None
        if not self._board.check([key]):
            return None
        note: str = self._board.get(key).decode()
        self._board.delete_key(key)
        return note

    def _reduced(self, values: list[float], how: Any, divisor: int) -> list[float]:
        if self.size == 1 or not values:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)  # on the CPU: nothing here waits for a GPU
        dist.all_reduce(tensor, how)
        reduced: list[float] = (tensor / divisor).tolist()
        return reduced


def listen(host: str, size: int) -> TCPStore:
    """Opens the meeting place of a group on this machine, at a free port (`.port`)."""
    return TCPStore(host, 0, size, True, wait_for_workers=False)


def meet(place: tuple[str, int], size: int) -> Store:
    """The meeting place that another process has opened, by address and port."""
    return TCPStore(*place, size, False)


def talk_over(address: str) -> None:
    """Lets this process's groups meet over the network that this address of the machine's is in.

    Gloo would take the address that the host's name has here, which is one of loopback on many machines (Debian's
    127.0.1.1): workers on other nodes could not reach it. What a user has set stays.
    """
    for _, name in socket.if_nameindex():
        # One without an IPv4 address is none that anybody could be told of here.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            if socket.inet_ntoa(answer[20:24]) == address:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def join_alone(device: torch.device) -> World:
    """A process group of one, for engines that want one."""
    return join(HashStore(), 0, 1, device, 600.0)


def join(store: Store, rank: int, size: int, device: torch.device, deadline: float) -> World:
    """Joins a process group; it stays up for all trials of this process.

    Args:
        store: Where its members meet.
        rank: Which of them this is.
        size: How many they are.
        device: Where learners live; gradients of CUDA tensors go over NCCL, everything else over Gloo.
        deadline: Seconds after which a collective that waits for a missing worker raises.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=deadline)
    )
    # A connection of its own: a thread that asks for a note must not wait for one that waits in a collective.
    return World(rank, size, device, store.clone() if size > 1 else None)  # type: ignore[attr-defined]


def is_lost_link(error: BaseException) -> bool:
    """Whether an error means that another worker is gone or silent, rather than that something is wrong here."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    )

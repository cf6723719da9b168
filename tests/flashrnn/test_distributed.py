"""Data-parallel training in two processes: the gradients are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import flashrnn

WORLD, B, T, INPUTS = 2, 4, 6, 5


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = flashrnn.nn.LSTM(INPUTS, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.slstm = flashrnn.nn.SLSTM(16, 8, num_heads=2, batch_first=True)
        self.out = torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.slstm(self.lstm(x)[0])[0])


def model_and_batch() -> tuple[Model, torch.Tensor]:
    torch.manual_seed(3)
    return Model(), torch.randn(B, T, INPUTS)


def train(model: torch.nn.Module, x: torch.Tensor) -> None:
    """Two steps, so that parameters moved by the first take part in the second."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def whole(x: torch.Tensor) -> torch.Tensor:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def worker(rank: int, kind: str, rendezvous: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD)
    try:
        model, x = model_and_batch()
        wrapped: torch.nn.Module = model
        if kind == "ddp":
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
        else:
            from torch.distributed.fsdp import fully_shard

            mesh = dist.init_device_mesh("cpu", (WORLD,))
            for part in (model.lstm, model.slstm, model):
                fully_shard(part, mesh=mesh)
        train(wrapped, x.chunk(WORLD)[rank])
        found = {n: (whole(p.detach()), whole(p.grad)) for n, p in model.named_parameters()}
        if rank == 0:
            torch.save(found, Path(folder) / "found.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_equal_one(kind, tmp_path) -> None:
    model, x = model_and_batch()
    train(model, x)
    mp.spawn(worker, (kind, str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=WORLD)
    found = torch.load(tmp_path / "found.pt")
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        value, grad = found[name]
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-7, msg=name)
        torch.testing.assert_close(value, parameter.detach(), rtol=1e-5, atol=1e-7, msg=name)

"""The tile of a launch, where the device is not of the kind that the table was made for."""

from types import SimpleNamespace

import pytest
import torch

from fgrpo_kernels.gpu import launch_table
from fgrpo_kernels.gpu.launch_table import TABLE, multiprocessors, row_tile, tile_for

pytestmark = pytest.mark.pytorch_path
GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("kind", TABLE)
@pytest.mark.parametrize("vocab", [1000, 32_000, 151_936])
def test_warps_of_64_threads_take_the_same_columns(kind, vocab, monkeypatch):
    launch_table._architecture.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    properties = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    there = tile_for(SimpleNamespace(dtype=torch.bfloat16, device=GPU), vocab, kind)
    launch_table._architecture.cache_clear()
    here = row_tile(vocab, 2, "", kind)
    assert (there.columns, there.arguments()["THREADS"]) == (here.columns, 64 * there.num_warps)
    assert there.threads <= 512  # registers for as many


def test_the_interpreter_has_one_multiprocessor():
    assert multiprocessors(torch.device("cpu")) == 1

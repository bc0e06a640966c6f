"""What only a GPU can show of the delta codec: large deltas, launches, waiting, devices; see test_delta_codec.py."""

import warnings

import pytest
import torch
from sizes import MADE_UP, fitting

from fgrpo_kernels import codec as cpp
from fgrpo_kernels.codec import gpu as delta_codec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("codec", ["int8", "int4", "int2"])
def test_ten_million_values_with_feedback_over_rounds(codec, rounding):
    size = fitting(10_000_019, 5_019)
    new, base = torch.randn(size) * 0.02, (torch.randn(size) * 0.02).bfloat16()
    residual, on_device = torch.zeros(size), torch.zeros(size, device="cuda")
    for seed in range(3):
        expected = cpp.encode(new, base, codec=codec, rounding=rounding, seed=seed, residual=residual)
        codes, scales = delta_codec.encode(new.cuda(), base.cuda(), on_device, codec, 64, rounding, seed)
        assert torch.equal(codes.cpu(), expected.codes)
        assert torch.equal(scales.cpu(), expected.scales)
        assert torch.equal(on_device.cpu(), residual)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_more_than_2_to_31_values(rounding):  # pragma: no cover - hours in the interpreter
    size = 2**31 + 1001
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GB of device memory")
    new = torch.randn(2**20 + 7).bfloat16().repeat(size // 2**20 + 1)[:size]
    codes, scales = delta_codec.encode(new.cuda(), None, None, "int4", 64, rounding, 5)
    expected = cpp.encode(new, codec="int4", rounding=rounding, seed=5)
    assert torch.equal(codes.cpu(), expected.codes)
    assert torch.equal(scales.cpu(), expected.scales)
    out = torch.full((size,), float("nan"), device="cuda")
    delta_codec.decode(codes, scales, "int4", 64, out)
    blocks, size_of_end = 80, 79 * 64 + size % 64
    end = cpp.Encoded(expected.codes[-blocks * 32 :], expected.scales[-blocks:], "int4", 64, size_of_end)
    assert torch.equal(out[-size_of_end:].cpu(), cpp.decode(end))
    assert not out.isnan().any()


@pytest.mark.skipif(MADE_UP, reason="nothing is compiled there")
def test_a_new_size_or_seed_needs_no_new_kernel():  # pragma: no cover - the interpreter compiles nothing
    from fgrpo_kernels.codec.gpu_blocks import decode_kernel, encode_kernel

    def run(size, seed):
        values = torch.randn(size, device="cuda")
        encoded = delta_codec.encode(values, None, None, "int4", 64, "stochastic", seed)
        delta_codec.decode(*encoded, "int4", 64, values)

    run(1000, 3)
    caches = [kernel.device_caches[torch.cuda.current_device()][0] for kernel in (encode_kernel, decode_kernel)]
    before = [len(cache) for cache in caches]
    for size, seed in ((1, 0), (16, 1), (1024, 2**31), (99_999, 2**64 - 1)):
        run(size, seed)
    assert [len(cache) for cache in caches] == before


def test_encode_waits_once_and_decode_never():
    values, residual = (
        torch.randn(fitting(100_000, 999), device="cuda"),
        torch.zeros(fitting(100_000, 999), device="cuda"),
    )
    encoded = delta_codec.encode(values, None, residual, "int4", 64, "nearest", 0)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            encoded = delta_codec.encode(values, None, residual, "int4", 64, "nearest", 0)
            delta_codec.decode(*encoded, "int4", 64, values)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(warning.message) for warning in waits) == 1  # of the encoding


def test_what_works_on_the_cpu_alone_says_so():
    encoded = cpp.encode(torch.randn(100, device="cuda"))
    with pytest.raises(TypeError, match=r"payload 0 must be on the CPU, got cuda:0; call .cpu\(\) first"):
        cpp.aggregate([encoded], [1.0])
    with pytest.raises(ValueError, match="base is on cpu, new on cuda:0"):
        cpp.encode(torch.ones(5, device="cuda"), torch.ones(5))
    with pytest.raises(ValueError, match="decode: out is on cpu, codes on cuda:0, scales on cuda:0"):
        delta_codec.decode(encoded.codes, encoded.scales, "int4", 64, torch.empty(100))
    assert torch.equal(cpp.aggregate([encoded.cpu()], [1.0]), cpp.decode(encoded).cpu())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_device_that_is_not_the_current_one():  # pragma: no cover - the made-up device is the only one
    values = torch.randn(5000)
    codes, scales = delta_codec.encode(values.to("cuda:1"), None, None, "int8", 64, "nearest", 0)
    assert codes.device == scales.device == torch.device("cuda:1")
    assert torch.equal(codes.cpu(), cpp.encode(values, codec="int8").codes)

"""The delta codec's kernels equal the C++ bit for bit: in the interpreter, and on a GPU where there is one."""

import pytest
import torch

from fgrpo_kernels import codec as cpp
from fgrpo_kernels.codec import gpu as delta_codec
from fgrpo_kernels.codec.gpu_values import random_bits
from fgrpo_kernels.jit import HAS_TRITON, INTERPRETED, jit, tl

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.skipif(
        not HAS_TRITON or not (INTERPRETED or torch.cuda.is_available()),
        reason="needs Triton's interpreter (TRITON_INTERPRET=1) or a GPU",
    ),
    # The inverse of a scale of 0 is computed and not used.
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),  # as are codes of values that cannot be encoded
]

BLOCKS = [32, 64, 128, 256, 512, 1024]
SEED = 0xFEDCBA9876543210
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
OPERANDS = [
    pytest.param(FLOAT32, None, False, id="new"),
    pytest.param(BFLOAT16, None, False, id="new_bf16"),
    pytest.param(FLOAT32, FLOAT32, True, id="all"),
    pytest.param(FLOAT32, BFLOAT16, False, id="base_bf16"),
    pytest.param(BFLOAT16, FLOAT32, False, id="new_bf16-base"),
    pytest.param(BFLOAT16, BFLOAT16, True, id="new_bf16-base_bf16-residual"),
    pytest.param(FLOAT32, None, True, id="residual"),
]


def rough_values(size: int, seed: int = 0) -> torch.Tensor:
    """Gaussian values among zeros, exact ties, blocks of zeros and of subnormals, and magnitudes of 1e-45 to 1e38."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator)
    values[torch.rand(size, generator=generator) < 0.1] = 0.0
    values[100:200] = torch.arange(len(values[100:200])) / 2.0 - 20  # 40 halves up and down: many ties
    values[256:448] = 0.0
    values[300:310] = -0.0
    values[512:600] *= 1e-30
    values[700:800] *= 1e30
    values[900:1000] *= 1e-39
    values[1100:1101] = -(2.0**127)
    values[1200:1300] *= 2.0**-126 * 127  # scales on both sides of the smallest normal number
    return values


def any_bits(size: int, seed: int = 0) -> torch.Tensor:
    """Every bit pattern of a float32 up to 2^127 in magnitude, with exponents alike within a group of 256."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (size,), generator=generator)
    exponents = torch.randint(0, 254, (-(-size // 256),), generator=generator).repeat_interleave(256)[:size]
    exponents = (exponents - torch.randint(0, 12, (size,), generator=generator)).clamp(min=0)
    return ((bits & ~0x7F800000) | (exponents << 23)).to(torch.int32).view(torch.float32)


def assert_same_bits(ours: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    as_bytes = [x.cpu().contiguous().view(torch.uint8) for x in (ours, expected)]
    assert torch.equal(*as_bytes), f"{what} differs first in byte {int((as_bytes[0] != as_bytes[1]).int().argmax())}"


def check(new, base=None, residual=None, *, codec, block=64, rounding="nearest") -> None:
    """Encode and decode on the device and in C++, and compare every byte, the residual's too."""
    on_device = [None if x is None else x.to(DEVICE, copy=True) for x in (new, base, residual)]
    codes, scales = delta_codec.encode(*on_device, codec, block, rounding, SEED)
    if residual is not None:
        residual = residual.clone()
    expected = cpp.encode(new, base, codec=codec, block=block, rounding=rounding, seed=SEED, residual=residual)
    assert_same_bits(codes, expected.codes, "codes")
    assert_same_bits(scales, expected.scales, "scales")
    if residual is not None:
        assert_same_bits(on_device[2], residual, "residual")
    for before, after in zip((new, base), on_device[:2], strict=True):
        assert before is None or torch.equal(before.cpu(), after.cpu()), "an input has changed"
    out = torch.full((new.numel(),), float("nan"), device=DEVICE)
    delta_codec.decode(codes, scales, codec, block, out)
    assert_same_bits(out, cpp.decode(expected), "decoded")


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("codec", ["int8", "int4", "int2"])
def test_every_block_and_odd_sizes(codec, block, rounding):
    for size in sorted({1, 31, block - 1, block, block + 1, 1000}):
        check(rough_values(size), codec=codec, block=block, rounding=rounding)
    size = 4500  # more than a program's share
    check(rough_values(size), torch.randn(size), torch.randn(size) * 0.1, codec=codec, block=block, rounding=rounding)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(("new_dtype", "base_dtype", "has_residual"), OPERANDS)
@pytest.mark.parametrize("codec", cpp.CODECS)
def test_every_kind_of_operand(codec, new_dtype, base_dtype, has_residual, rounding):
    generator = torch.Generator().manual_seed(1)
    for size in (1000, 4096):
        new = (torch.randn(size, generator=generator) * 0.02).to(new_dtype)
        base = None if base_dtype is None else (new.float() + 1e-4 * torch.randn(size, generator=generator))
        residual = torch.randn(size, generator=generator) * 1e-5 if has_residual else None
        check(new, None if base is None else base.to(base_dtype), residual, codec=codec, rounding=rounding)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("codec", cpp.CODECS)
def test_any_number_that_can_be_encoded(codec, rounding):
    for seed in range(4):
        values = any_bits(3000, seed)
        check(values, codec=codec, block=32, rounding=rounding)
        check(values, residual=torch.zeros(3000), codec=codec, block=256, rounding=rounding)


@pytest.mark.parametrize("codec", cpp.CODECS)
def test_operands_that_begin_anywhere_in_memory(codec):
    new, base = torch.randn(1500).to(DEVICE), torch.randn(1500).bfloat16().to(DEVICE)
    residual = torch.zeros(1500, device=DEVICE)
    codes, scales = delta_codec.encode(new[3:1400], base[1:1398], residual[2:1399], codec, 64, "nearest", 0)
    expected_residual = torch.zeros(1397)
    expected = cpp.encode(new[3:1400].cpu(), base[1:1398].cpu(), codec=codec, residual=expected_residual)
    assert_same_bits(codes, expected.codes, "codes")
    assert_same_bits(scales, expected.scales, "scales")
    assert_same_bits(residual[2:1399], expected_residual, "residual")
    assert not residual[:2].any()
    assert not residual[1399:].any()


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_every_seed(seed):
    values = torch.linspace(-1, 1, 200)
    codes, _ = delta_codec.encode(values.to(DEVICE), None, None, "int4", 64, "stochastic", seed)
    assert_same_bits(codes, cpp.encode(values, rounding="stochastic", seed=seed).codes, "codes")


def test_every_codec_of_the_cpu_is_here_and_none_needs_values():
    assert set(delta_codec.CODECS) >= set(cpp.CODECS)
    for codec in cpp.CODECS:
        check(torch.empty(0), residual=torch.empty(0), codec=codec)


@pytest.mark.parametrize("codec", ["int8", "int4", "int2"])
def test_decodes_any_bytes_as_cpp_does(codec):
    """Codes and scales that `encode` does not write too: the lowest code, negative scales."""
    size = 3001
    codes = torch.randint(256, (cpp.encode(torch.zeros(size), codec=codec).codes.numel(),), dtype=torch.uint8)
    scales = (torch.randn(-(-size // 64)) * 1e-3).bfloat16()
    scales[3:5] = torch.tensor([0.0, 2.0**120])
    out = torch.full((size,), float("nan"), device=DEVICE)
    delta_codec.decode(codes.to(DEVICE), scales.to(DEVICE), codec, 64, out)
    assert_same_bits(out, cpp.decode(cpp.Encoded(codes, scales, codec, 64, size)), "decoded")


@jit
def random_bits_kernel(out_ptr: tl.tensor, seed_low: tl.tensor, seed_high: tl.tensor, first: tl.tensor) -> None:
    quad = tl.arange(0, 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    at = tl.arange(0, 4)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out_ptr + at, random_bits(seed_low, seed_high, first.to(tl.int64), quad).to(tl.int64))


def philox_words(seed: int, counter: int) -> list[int]:
    """Philox4x32-10 in Python's integers."""
    low = 0xFFFFFFFF
    c, k = [counter & low, counter >> 32, 0, 0], [seed & low, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & low, (a >> 32) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


@pytest.mark.usefixtures("int32_overflows_are_errors")
@pytest.mark.parametrize("seed", [(0, 0), (5, 7), (-1, 2**31 - 1), (-(2**31), -1)])
@pytest.mark.parametrize("first", [0, 2**34 - 64, 2**34, 2**35 - 64, 2**35, 2**36 + 2**20])
def test_random_numbers_of_values_past_32_bits(first, seed):
    out = torch.zeros(64, dtype=torch.int64, device=DEVICE)
    random_bits_kernel[(1,)](out, *seed, first)
    low, high = (half % 2**32 for half in seed)
    words = [word for i in range(8) for word in philox_words(high << 32 | low, first // 8 + i)]
    assert out.tolist() == [half for word in words for half in (word & 0xFFFF, word >> 16)]


def test_philox_gives_the_published_numbers():
    """The known-answer test of Random123 for counter 0 and key 0."""
    assert philox_words(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("where", ["new", "base", "residual"])
@pytest.mark.parametrize("codec", delta_codec.CODECS)
def test_what_cannot_be_encoded_is_named_and_the_residual_is_untouched(codec, where):
    size = 5000
    for index, bad in {0: float("nan"), 2047: float("inf"), 2048: -float("inf"), 4998: 3e38}.items():
        operands = {name: torch.randn(size) for name in ("new", "base", "residual")}
        operands[where][index] = bad
        operands["new"][4999] = float("nan")  # a later fault is not the one named
        on_device = [x.to(DEVICE, copy=True) for x in operands.values()]
        with pytest.raises(ValueError, match=rf"^encode: the delta at index {index} is .*{where} = "):
            delta_codec.encode(*on_device, codec, 64, "nearest", 0)
        assert_same_bits(on_device[2], operands["residual"], "residual")
        if where != "residual":
            with pytest.raises(ValueError, match=rf"^encode: the delta at index {index} is .*{where} = "):
                delta_codec.encode(*on_device[:2], None, codec, 1024, "stochastic", 0)


def test_the_message_is_that_of_cpp():
    new, base = torch.zeros(100), torch.ones(100) * 0.5
    new[70] = float("inf")
    messages = []
    for encode in (
        lambda: cpp.encode(new, base, codec="int4"),
        lambda: delta_codec.encode(new.to(DEVICE), base.to(DEVICE), None, "int4", 64, "nearest", 0),
    ):
        with pytest.raises(ValueError, match="index 70") as error:
            encode()
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def encode_ones(**arguments: object) -> object:
    ones = torch.ones(100, device=DEVICE)
    defaults = {"base": None, "residual": None, "codec": "int4", "block": 64, "rounding": "nearest", "seed": 0}
    return delta_codec.encode(ones, **{**defaults, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"base": 99}, "base has 99 values, new has 100; are they the same parameters", id="base"),
        pytest.param({"residual": 1}, "residual has 1 values, new has 100; was it made for another", id="residual"),
        pytest.param({"codec": "int3"}, "codec must be one of int8, int4, int2, bf16, none, got 'int3'", id="codec"),
        pytest.param({"scale": "mse"}, r"scale must be 'absmax', got 'mse'; for that one call .cpu\(\)", id="scale"),
    ],
)
def test_refused(arguments, message):
    tensors = {name: torch.zeros(x, device=DEVICE) if isinstance(x, int) else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=message):
        encode_ones(**tensors)


def test_operands_elsewhere_or_in_the_same_memory_are_refused():
    with pytest.raises(ValueError, match="base is on meta, new on"):
        encode_ones(base=torch.zeros(100, device="meta"))
    memory = torch.zeros(150, device=DEVICE)
    with pytest.raises(ValueError, match="base shares memory with residual or the output, which encode overwrites"):
        encode_ones(base=memory[50:], residual=memory[:100])
    encode_ones(base=memory[:100], residual=torch.zeros(100, device=DEVICE))
    with pytest.raises(ValueError, match="new shares memory with residual"):
        delta_codec.encode(memory, None, memory, "none", 64, "nearest", 0)
    out = (memory.view(torch.uint8)[:600], torch.empty(0, dtype=torch.bfloat16, device=DEVICE))
    with pytest.raises(ValueError, match="new shares memory with residual or the output"):
        delta_codec.encode(memory, None, None, "none", 64, "nearest", 0, out=out)


def test_writes_to_memory_that_is_given():
    out = (torch.full((64,), 255, dtype=torch.uint8, device=DEVICE), torch.ones(2, device=DEVICE).bfloat16())
    values = torch.randn(100)
    codes, scales = delta_codec.encode(values.to(DEVICE), None, None, "int4", 64, "nearest", 0, out=out)
    assert codes is out[0]
    assert scales is out[1]
    expected = cpp.encode(values)
    assert_same_bits(codes, expected.codes, "codes")
    assert_same_bits(scales, expected.scales, "scales")


def on_the_public_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, where there is no GPU, send CPU tensors the way of a GPU's."""
    monkeypatch.setattr(cpp, "_on_gpu", lambda tensor: True)


@pytest.mark.parametrize("codec", cpp.CODECS)
def test_the_public_functions_take_the_kernels(codec, monkeypatch):
    values, residual = torch.randn(500), torch.zeros(500)
    expected = cpp.encode(values, codec=codec, residual=residual)
    on_the_public_way(monkeypatch)
    on_device = torch.zeros(500, device=DEVICE)
    encoded = cpp.encode(values.to(DEVICE), codec=codec, residual=on_device)
    assert encoded.device.type == DEVICE
    assert_same_bits(encoded.cpu().codes, expected.codes, "codes")
    assert_same_bits(encoded.cpu().scales, expected.scales, "scales")
    assert_same_bits(on_device, residual, "residual")
    assert cpp.encode(values.to(DEVICE), codec=codec, out=encoded) is encoded
    decoded = cpp.decode(encoded)
    assert decoded.device.type == DEVICE
    monkeypatch.undo()
    assert_same_bits(decoded, cpp.decode(expected), "decoded")


def test_the_public_functions_ignore_no_option(monkeypatch):
    values = torch.randn(100).to(DEVICE)
    on_the_public_way(monkeypatch)
    with pytest.raises(ValueError, match="num_threads is for tensors on the CPU, got 2"):
        cpp.encode(values, num_threads=2)
    with pytest.raises(ValueError, match="num_threads is for tensors on the CPU, got 1"):
        cpp.decode(cpp.encode(values), num_threads=1)
    with pytest.raises(ValueError, match="scale must be 'absmax', got 'mse'"):
        cpp.encode(values, scale="mse")

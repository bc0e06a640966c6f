"""Every wrong argument is refused with a message that names it; nothing the caller owns changes."""

import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch

from fgrpo_kernels import _C
from fgrpo_kernels.codec import CODECS, Encoded, aggregate, check_codes, decode, encode
from fgrpo_kernels.downlink import apply_update, encode_update
from fgrpo_kernels.robust import median

ONES = torch.ones(100)
CODES = torch.zeros(64, dtype=torch.uint8)  # 100 int4 codes in two blocks of 64
SCALES = torch.ones(2, dtype=torch.bfloat16)


def payload(codec: str = "int4", size: int = 100) -> Encoded:
    return encode(torch.randn(size, generator=torch.Generator().manual_seed(0)), codec=codec)


REFUSED = [
    pytest.param(lambda: encode([1.0]), TypeError, "encode: new must be a tensor, got list", id="list"),
    pytest.param(lambda: encode(ONES.double()), TypeError, "new must be float32 or bfloat16, got float64", id="dtype"),
    pytest.param(lambda: encode(ONES.half()), TypeError, "got float16", id="float16"),
    pytest.param(lambda: encode(ONES.view(10, 10)), ValueError, r"1-D, got shape \(10, 10\)", id="shape"),
    pytest.param(lambda: encode(torch.ones(200)[::2]), ValueError, "contiguous, got stride 2", id="stride"),
    pytest.param(lambda: encode(ONES.to("meta")), TypeError, "on the CPU, got meta", id="device"),
    pytest.param(lambda: encode(ONES, torch.ones(99)), ValueError, "base has 99 values, new has 100", id="base-size"),
    pytest.param(
        lambda: encode(ONES, codec="int3"), ValueError, "codec must be one of int8, .* got 'int3'", id="codec"
    ),
    pytest.param(lambda: encode(ONES, block=48), ValueError, "power of two from 32 to 1024, got 48", id="block-48"),
    pytest.param(lambda: encode(ONES, block=2048), ValueError, "got 2048", id="block-2048"),
    pytest.param(lambda: encode(ONES, block=64.0), TypeError, "block must be an int, got 64.0", id="block-float"),
    pytest.param(
        lambda: encode(ONES, rounding="up"), ValueError, "rounding must be one of nearest, .*'up'", id="rounding"
    ),
    pytest.param(
        lambda: encode(ONES, scale="rms"), ValueError, "scale must be one of absmax, mse, got 'rms'", id="scale"
    ),
    pytest.param(
        lambda: encode(ONES, scale="mse", rounding="stochastic"),
        ValueError,
        "'mse' goes with rounding 'nearest'",
        id="mse-stochastic",
    ),
    pytest.param(lambda: encode(ONES, out=CODES), TypeError, "out must be an Encoded, got Tensor", id="encode-out"),
    pytest.param(
        lambda: encode(ONES, out=payload("int8")),
        ValueError,
        "out holds 100 parameters in int8 with block 64, expected 100 in int4",
        id="encode-out-codec",
    ),
    pytest.param(lambda: encode(ONES, seed=-1), ValueError, "seed must be from 0", id="seed-negative"),
    pytest.param(lambda: encode(ONES, seed=2**64), ValueError, "seed must be from 0", id="seed-large"),
    pytest.param(lambda: encode(ONES, num_threads=0), ValueError, "num_threads must be at least 1", id="threads-0"),
    pytest.param(
        lambda: encode(ONES, residual=torch.zeros(99)),
        ValueError,
        "residual has 99 values, new has 100",
        id="residual-size",
    ),
    pytest.param(
        lambda: encode(ONES[:0], residual=torch.zeros(9)), ValueError, "residual has 9 values", id="residual-of-nothing"
    ),
    pytest.param(
        lambda: encode(ONES, residual=torch.zeros(0)),
        ValueError,
        "residual has 0 values, new has 100",
        id="residual-empty",
    ),
    pytest.param(
        lambda: encode(ONES, residual=torch.zeros(100).bfloat16()),
        TypeError,
        "residual must be float32",
        id="residual-dtype",
    ),
    pytest.param(
        lambda: encode(ONES, residual=torch.zeros(100, requires_grad=True)),
        ValueError,
        "require grad",
        id="residual-grad",
    ),
    pytest.param(
        lambda: encode(ONES, residual=ONES), ValueError, "new shares memory with residual", id="residual-is-new"
    ),
    pytest.param(lambda: decode(payload(), torch.empty(99)), ValueError, "out has 99 elements, expected 100", id="out"),
    pytest.param(
        lambda: decode(payload(), np.empty(100, np.float32)), TypeError, "out must be a tensor", id="out-numpy"
    ),
    pytest.param(lambda: decode("payload"), TypeError, "must be an Encoded, got str", id="decode-str"),
    pytest.param(lambda: aggregate([], []), ValueError, "no payloads; did every client fail", id="no-payloads"),
    pytest.param(
        lambda: aggregate([payload(), {}], [1, 1]),
        TypeError,
        "payload 1 must be an Encoded, got dict",
        id="payload-dict",
    ),
    pytest.param(
        lambda: aggregate([payload(), payload(), payload(), payload("int8", 64)], [0.25] * 4),
        ValueError,
        "aggregate: payload 3 has 64 parameters, expected 100; was it made from another model",
        id="payload-size",
    ),
    pytest.param(lambda: aggregate([payload()], [1, 2]), ValueError, "1 payloads but 2 weights", id="weights-count"),
    pytest.param(lambda: aggregate([payload()], [float("nan")]), ValueError, "weight 0 is nan", id="weight-nan"),
    pytest.param(lambda: aggregate([payload()], [1e39]), ValueError, "weight 0 is inf", id="weight-overflow"),
    pytest.param(lambda: aggregate([payload()], torch.ones(1, 1)), TypeError, "float", id="weights-2d"),
    pytest.param(
        lambda: Encoded(CODES[:63], SCALES, "int4", 64, 100), ValueError, "codes has 63 .* need 64", id="codes"
    ),
    pytest.param(
        lambda: Encoded(CODES, SCALES[:1], "int4", 64, 100), ValueError, "scales has 1 .* need 2", id="scales"
    ),
    pytest.param(
        lambda: Encoded(CODES, SCALES.float(), "int4", 64, 100), TypeError, "scales must be bfloat16", id="dtypes"
    ),
    pytest.param(lambda: Encoded(CODES, SCALES, "int4", 64, -1), ValueError, "size must not be negative", id="size"),
    pytest.param(lambda: Encoded(CODES, SCALES, "int4", 64, 2**63), ValueError, "memory can hold", id="size-huge"),
    pytest.param(
        lambda: Encoded(CODES, SCALES, "zip", 64, 100), ValueError, "codec must be one of", id="encoded-codec"
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("where", ["new", "base", "residual"])
@pytest.mark.parametrize("index", [0, 4999, 9999])
def test_what_cannot_be_encoded_is_named_and_the_residual_is_untouched(where: str, bad: float, index: int) -> None:
    operands = {name: torch.randn(10_000) for name in ("new", "base", "residual")}
    operands[where][index] = bad
    operands["new"][9999] = float("nan")  # a later fault is not the one named
    before = operands["residual"].clone()
    with pytest.raises(ValueError, match=rf"encode: the delta at index {index} is .*{where} = "):
        encode(operands["new"], operands["base"], residual=operands["residual"], num_threads=2)
    assert operands["residual"].numpy().tobytes() == before.numpy().tobytes()


def test_an_overflowing_difference_is_refused() -> None:
    with pytest.raises(ValueError, match="index 2 is inf"):
        encode(torch.tensor([0.0, 0.0, 3e38]), torch.tensor([0.0, 0.0, -3e38]))


def with_byte(encoded: Encoded, position: int, value: int) -> Encoded:
    codes = encoded.codes.clone()
    codes[position] = value
    return Encoded(codes, encoded.scales, encoded.codec, encoded.block, encoded.size)


def with_scale(encoded: Encoded, position: int, value: float) -> Encoded:
    scales = encoded.scales.clone()
    scales[position] = value
    return Encoded(encoded.codes, scales, encoded.codec, encoded.block, encoded.size)


FORGED = [
    pytest.param(with_byte(payload("int8"), 127, 1), "padding code 127 is 1", id="padding"),
    pytest.param(with_byte(payload("int4"), 63, 0xF0), "padding code 127 is -1", id="padding-int4"),
    pytest.param(with_scale(payload(), 1, float("nan")), "scale 1 is nan", id="scale-nan"),
    pytest.param(with_scale(payload(), 1, float("inf")), "scale 1 is inf", id="scale-inf"),
    pytest.param(with_scale(payload(), 0, -3e38), "scale 0 is -3", id="scale-negative-overflows"),
    pytest.param(
        with_scale(payload("int8"), 1, -0.01),
        "scale 1 is -0.01.*negative only in a block with the code -128",
        id="scale-negative-int8",
    ),
    pytest.param(with_scale(payload("int4"), 1, -0.01), "scale 1 is -0.01.*with the code -8", id="scale-negative-int4"),
    pytest.param(with_scale(payload("int2"), 0, -0.01), "scale 0 is -0.01.*with the code -2", id="scale-negative-int2"),
    pytest.param(with_scale(payload(), 0, -0.0), "scale 0 is -0", id="scale-negative-zero"),
    pytest.param(with_scale(payload(), 0, 3e38), "scale 0 is 3", id="scale-overflows"),
    pytest.param(
        with_byte(with_scale(payload("int2"), 0, -(2.0**127)), 5, 0x20),
        "index 37, code -2 times scale -1.7.*, does not fit",
        id="int2-product-overflows",
    ),
    pytest.param(with_byte(payload("bf16"), 199, 0x7F), "index 99 is not finite, or larger", id="bf16-huge"),
    pytest.param(with_byte(payload("none"), 403 - 4, 0x7F), "index 99 is not finite, or larger", id="none-huge"),
]


@pytest.mark.parametrize(("forged", "message"), FORGED)
def test_check_codes_names_the_fault(simd: str, forged: Encoded, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_codes(forged)
    assert decode(forged).shape == (100,)  # harmless all the same


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [0, 1, 64, 65, 3000])
def test_check_codes_accepts_what_encode_writes(simd: str, codec: str, size: int) -> None:
    for scale in (1e-38, 1.0, 2.0**120):
        delta = torch.randn(size).clamp(-4, 4) * scale
        check_codes(encode(delta, codec=codec, rounding="stochastic"))
        check_codes(encode(delta, codec=codec, scale="mse"))


@pytest.mark.parametrize("codec", ["int8", "int4", "int2"])
def test_what_check_codes_accepts_is_finite(codec: str) -> None:
    """Any code at the largest scales that pass."""
    codes = torch.arange(64 * {"int8": 8, "int4": 4, "int2": 2}[codec] // 8).mul(73).to(torch.uint8)
    accepted = 0
    for bits in range(0x7B00, 0x8000):
        scale = torch.tensor([bits], dtype=torch.int16).view(torch.bfloat16)
        encoded = Encoded(codes, scale, codec, 64, 64)
        try:
            check_codes(encoded)
        except ValueError:
            continue
        accepted += 1
        assert bool(decode(encoded).isfinite().all())
    assert 0x80 < accepted <= 0x400


def test_numpy_arrays_share_memory() -> None:
    new, base, residual = (np.ones(100, np.float32) * value for value in (1.0, 0.7, 0.0))
    encoded = encode(new, base, residual=residual)
    assert residual.any()
    np.testing.assert_allclose(decode(encoded).numpy() + residual, new - base, rtol=1e-6)


def test_a_payload_may_hold_arrays() -> None:
    """Read-only ones too, such as those over the bytes of a message."""
    encoded = payload("none")
    codes = np.frombuffer(encoded.codes.numpy().tobytes(), np.uint8)
    received = Encoded(codes, encoded.scales, "none", 64, 100)
    assert torch.equal(decode(received), decode(encoded))
    assert received.nbytes == encoded.nbytes


def test_parameters_that_require_grad_are_read() -> None:
    parameter = torch.nn.Parameter(torch.randn(100))
    assert torch.equal(encode(parameter).codes, encode(parameter.detach()).codes)


def test_encoded_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        payload().size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("buffer", "error", "message"),
    [
        pytest.param(3, TypeError, "new must be a buffer", id="not-a-buffer"),
        pytest.param(np.ones(8, np.float64), TypeError, "format 'fH', got 'd'", id="format"),
        pytest.param(np.ones(16, np.float32)[::2], ValueError, "new must be contiguous", id="stride"),
    ],
)
def test_bindings_check_buffers_themselves(buffer: object, error: type[Exception], message: str) -> None:
    codes, scales = np.zeros(64, np.uint8), np.zeros(1, np.uint16)
    with pytest.raises(error, match=message):
        _C.encode(buffer, None, None, "int8", 64, "nearest", 0, "absmax", codes, scales, 1)


def test_bindings_do_not_write_to_read_only_memory() -> None:
    scales = np.zeros(1, np.uint16)
    with pytest.raises(ValueError, match="encode: codes is in read-only memory"):
        _C.encode(np.ones(8, np.float32), None, None, "int8", 64, "nearest", 0, "absmax", bytes(64), scales, 1)


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    """100 zeros in a file that is mapped for reading: writing to it ends the process."""
    path = tmp_path / "zeros"
    path.write_bytes(bytes(400))
    return np.memmap(path, np.float32, mode="r")


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def test_read_only_arrays_are_read_and_not_written(mapped: np.ndarray, recwarn: pytest.WarningsRecorder) -> None:
    new = read_only(np.ones(100, np.float32))
    assert torch.equal(decode(encode(new, mapped, codec="none")), ONES)
    assert not recwarn.list
    for residual in (mapped, read_only(np.zeros(100, np.float32))):
        with pytest.raises(ValueError, match="encode: residual is a read-only array, and is written"):
            encode(new, residual=residual)
        assert not residual.any()


WRITING = {
    "encode: residual": lambda out: encode(ONES, residual=out),
    "encode: codes": lambda out: encode(
        ONES[:64], codec="int8", out=Encoded(out.view(torch.uint8)[:64], SCALES[:1], "int8", 64, 64)
    ),
    "encode: scales": lambda out: encode(ONES, out=Encoded(CODES, out.view(torch.bfloat16)[:2], "int4", 64, 100)),
    "decode: out": lambda out: decode(payload(), out),
    "aggregate: out": lambda out: aggregate([payload()], [1.0], out),
    "trimmed_mean: out": lambda out: median([payload()], out),
    "apply_update: out": lambda out: apply_update(
        torch.zeros(200).bfloat16(),
        encode_update(torch.ones(200).bfloat16(), torch.zeros(200).bfloat16()),
        out.view(torch.bfloat16),
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not say")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("name", WRITING)
def test_tensors_over_read_only_memory_are_not_written(name: str, mapped: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"^{name} is in read-only memory, and is written to; pass a copy"):
        WRITING[name](torch.from_numpy(mapped))


def test_unknown_instruction_set() -> None:
    with pytest.raises(ValueError, match=r"this machine has .*baseline.*, not 'mmx'"):
        _C.use_simd("mmx")

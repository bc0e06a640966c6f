"""Compile every kernel, with its real launch table, for devices that are not there; and read what came out.

    python tests/kernels/ahead_of_time.py

writes `kernel_resources.csv` again, which `test_ahead_of_time.py` compares. Not with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fgrpo_kernels.codec.gpu import BFLOAT16S, FLOAT32S, tile_of_blocks, tile_of_values
from fgrpo_kernels.codec.gpu_blocks import decode_kernel, encode_kernel
from fgrpo_kernels.codec.gpu_values import ONE_ROUNDING_EACH, bfloat16_kernel, float32_kernel
from fgrpo_kernels.gpu.candidates import CANDIDATES
from fgrpo_kernels.gpu.group_advantages import MAX_BLOCK, group_advantages_kernel
from fgrpo_kernels.gpu.grpo_loss import SCALE_BLOCK, scale_kernel
from fgrpo_kernels.gpu.launch_table import Kind, row_tile, trying
from fgrpo_kernels.gpu.loss_kernel import grpo_loss_kernel
from fgrpo_kernels.gpu.loss_kernel_overlapped import grpo_loss_overlapped_kernel
from fgrpo_kernels.gpu.partial_token_stats import partial_token_stats_backward_kernel, partial_token_stats_kernel
from fgrpo_kernels.gpu.policy_kernels import finish_kernel, live_rows_kernel, policy_terms_kernel
from fgrpo_kernels.gpu.policy_terms import BLOCK, TERMS_WARPS
from fgrpo_kernels.gpu.softcap import BLOCK as SOFTCAP_BLOCK
from fgrpo_kernels.gpu.softcap import NUM_WARPS as SOFTCAP_WARPS
from fgrpo_kernels.gpu.softcap import softcap_kernel, softcap_slope_kernel
from fgrpo_kernels.gpu.token_logprobs import token_logprobs_backward_kernel, token_logprobs_kernel
from fgrpo_kernels.kl import DEVICE_ESTIMATORS
from fgrpo_kernels.objectives import DEVICE_FUNCTIONS, DEVICE_GATHERS

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
COMMITTED = Path(__file__).with_name("kernel_resources.csv")
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

INTEGERS = (
    *("T", "N", "B", "S", "length", "vocab", "columns", "group_size", "num_rewards", "vocab_start"),
    *("seed_low", "seed_high", "blocks", "tail"),
)
# What a launcher finds divisible by 16 with a vocabulary that is: pointers, the vocabulary and the rows' unit.
DIVISIBLE = ("vocab", "columns", "size")
POINTERS = {
    "targets_ptr": "*i64",
    "live_ptr": "*i1",
    "mask_ptr": "*i1",
    "ids_ptr": "*i64",
    "order_ptr": "*i64",
    "starts_ptr": "*i64",
    "degenerate_ptr": "*i1",
    "reward_weights_ptr": "*fp64",
    "codes_ptr": "*u8",
    "halves_ptr": "*i16",
    "scales_ptr": "*i16",
    "fault_ptr": "*i64",
}


class Variant(NamedTuple):
    """A kernel with the constants of one launch. `vocab` 0: it reads no rows of logits."""

    name: str
    kernel: Any
    dtype: str
    vocab: int
    constants: dict[str, Any]
    num_warps: int
    fp_fusion: bool = True


PLAIN_LOSS: dict[str, Any] = {
    "OBJECTIVE": DEVICE_FUNCTIONS["ppo_clip"],
    "KL": None,
    "HAS_ENTROPY": False,
    "factor_ptr": None,
    "ref_ptr": None,
}
KINDS: dict[Any, Kind] = {
    token_logprobs_kernel: "scan",
    partial_token_stats_kernel: "scan",
    token_logprobs_backward_kernel: "write",
    partial_token_stats_backward_kernel: "write",
    grpo_loss_kernel: "loss",
    grpo_loss_overlapped_kernel: "loss",
}


class Resources(NamedTuple):
    """What a compiled kernel takes.

    `read` and `write` are (lane-instructions, special-function operations) a logit in the loops that only read rows
    and that also write them; None where there is no such loop, or no disassembler.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int
    access_bytes: int
    read: tuple[float, float] | None
    write: tuple[float, float] | None


def variants(architecture: str) -> Iterator[Variant]:
    """Every kernel as it is launched there."""

    def on_rows(name: str, kernel: Any, dtype: str, vocab: int, **constants: Any) -> Variant:
        return row_variant(f"{name}, {dtype}, V = {vocab}", kernel, dtype, vocab, architecture, **constants)

    for dtype, vocab in (("bf16", 151_936), ("fp32", 151_936), ("bf16", 32_000), ("bf16", 2_048)):
        yield on_rows("token_logprobs", token_logprobs_kernel, dtype, vocab, live_ptr=None)
        yield on_rows("token_logprobs backward", token_logprobs_backward_kernel, dtype, vocab, grad_entropy_ptr=None)
        yield on_rows("grpo_loss", grpo_loss_kernel, dtype, vocab, **PLAIN_LOSS)
    entropy = "token_logprobs backward with entropy"
    yield on_rows(entropy, token_logprobs_backward_kernel, "bf16", 151_936)
    yield on_rows("token_logprobs of live rows", token_logprobs_kernel, "fp16", 151_936)
    yield on_rows("partial_token_stats", partial_token_stats_kernel, "bf16", 32_000)
    yield on_rows("partial_token_stats backward", partial_token_stats_backward_kernel, "bf16", 32_000)
    full = {"KL": DEVICE_ESTIMATORS["k3_is"], "HAS_ENTROPY": True}
    for name, objective in DEVICE_FUNCTIONS.items():
        if name not in ("gmpo", "vespo"):  # they work on sequences only
            terms = f"grpo_loss, {name}, all terms"
            yield on_rows(terms, grpo_loss_kernel, "bf16", 151_936, OBJECTIVE=objective, **full)
    padded = {"order_ptr": None, "starts_ptr": None, "BLOCK": BLOCK}
    live = {"ALL_WEIGHTED": False}
    yield Variant("live rows", live_rows_kernel, "fp32", 0, padded | live, 4)
    yield Variant("live rows, packed", live_rows_kernel, "fp32", 0, live | {"BLOCK": BLOCK}, 4)
    alone = {"GATHER": None, "MEAN": True, "OWN_RATIO": False}
    ppo = {"OBJECTIVE": DEVICE_FUNCTIONS["ppo_clip"], **full}
    single = dict.fromkeys(("grad_logp_ptr", "grad_entropy_ptr", "live_ptr", "mask_ptr"))
    yield Variant(
        "policy terms after one pass", policy_terms_kernel, "fp32", 0, padded | alone | ppo | single, TERMS_WARPS
    )
    for name, objective in DEVICE_FUNCTIONS.items():
        gather = DEVICE_GATHERS[name]
        options = {"GATHER": gather.function, "MEAN": gather.mean, "OWN_RATIO": not gather.is_log_ratio}
        constants = {"OBJECTIVE": objective, "BLOCK": BLOCK, **options, **full}
        yield Variant(f"policy terms, {name}, sequences", policy_terms_kernel, "fp32", 0, constants, TERMS_WARPS)
    yield Variant("end of the policy terms", finish_kernel, "fp32", 0, {"BLOCK": BLOCK}, 4)
    yield Variant("scaling of a gradient", scale_kernel, "bf16", 0, {"BLOCK": SCALE_BLOCK}, 8)
    for name, kernel in (("soft cap", softcap_kernel), ("slope of a soft cap", softcap_slope_kernel)):
        yield Variant(name, kernel, "bf16", 0, {"BLOCK": SOFTCAP_BLOCK}, SOFTCAP_WARPS)
    groups = {"SCALE": "group", "LEAVE_ONE_OUT": False, "BLOCK": 8, "BATCH_BLOCK": MAX_BLOCK}
    by_size = {"ids_ptr": None, "reward_weights_ptr": None}
    yield Variant("group_advantages", group_advantages_kernel, "fp32", 0, groups | by_size, 1)
    batch = groups | {"SCALE": "batch", "LEAVE_ONE_OUT": True, "BLOCK": MAX_BLOCK}
    yield Variant("group_advantages by id, batch", group_advantages_kernel, "fp32", 0, batch, 4)
    yield from codec_variants(architecture)


def row_variant(name: str, kernel: Any, dtype: str, vocab: int, architecture: str, **constants: Any) -> Variant:
    """A kernel that reads rows of logits, as it is launched."""
    arguments = row_tile(vocab, BYTES[dtype], architecture, KINDS[kernel]).arguments()
    num_warps = arguments.pop("num_warps")
    del arguments["enable_fp_fusion"]
    return Variant(name, kernel, dtype, vocab, arguments | constants, num_warps)


def candidate_variants() -> Iterator[tuple[Kind, Variant]]:
    """What the sweep measures, on rows of 151,936 bfloat16 logits and an H100."""
    for kind, choices in CANDIDATES.items():
        for name, choice in choices.items():
            kernel, constants = {
                "scan": (token_logprobs_kernel, {"live_ptr": None}),
                "write": (token_logprobs_backward_kernel, {"grad_entropy_ptr": None}),
                "loss": (grpo_loss_overlapped_kernel if choice.programs else grpo_loss_kernel, PLAIN_LOSS),
            }[kind]
            with trying(kind, choice):
                yield kind, row_variant(name, kernel, "bf16", 151_936, "sm_90", **constants)


def codec_variants(architecture: str) -> Iterator[Variant]:
    """The delta codec's kernels."""
    warp = 64 if architecture.startswith("gfx9") else 32
    plain: dict[str, Any] = {"base_ptr": None, "residual_ptr": None}
    without_base, without_residual = {"base_ptr": None}, {"residual_ptr": None}

    def on_tile(name: str, kernel: Any, dtype: str, tile: dict[str, int], **constants: Any) -> Variant:
        num_warps = tile.pop("num_warps")
        return Variant(name, kernel, dtype, 0, tile | constants, num_warps, ONE_ROUNDING_EACH["enable_fp_fusion"])

    def on_blocks(codec: str, block: int, dtype: str, rest: str, values: int, **constants: Any) -> Variant:
        name = f"delta codec, encode {codec}, block {block}, {dtype}{rest}"
        tile = tile_of_blocks(codec, block, warp, values)
        return on_tile(name, encode_kernel, dtype, tile, **{"STOCHASTIC": False} | constants)

    for codec in ("int8", "int4", "int2"):
        yield on_blocks(codec, 64, "fp32", "", FLOAT32S, **plain)
    yield on_blocks("int4", 64, "bf16", " with base", BFLOAT16S, **without_residual)
    yield on_blocks("int4", 64, "bf16", " with base and residual", FLOAT32S)
    yield on_blocks("int2", 32, "fp32", " with base and residual", FLOAT32S)
    yield on_blocks("int8", 1024, "fp32", " with residual", FLOAT32S, **without_base)
    yield on_blocks("int4", 64, "fp32", ", stochastic", FLOAT32S, **plain, STOCHASTIC=True)
    for codec in ("int8", "int4", "int2"):
        tile = tile_of_blocks(codec, 64, warp, FLOAT32S)
        yield on_tile(f"delta codec, decode {codec}, block 64", decode_kernel, "fp32", tile)
    search = "delta codec, search for unfit values, fp32 with base and residual"
    yield on_tile(search, float32_kernel, "fp32", tile_of_values(warp), out_ptr=None)
    rounding = "delta codec, encode bf16, fp32 with base and residual"
    yield on_tile(rounding, bfloat16_kernel, "fp32", tile_of_values(warp), STOCHASTIC=False)


def compile_variant(variant: Variant, target: GPUTarget) -> Resources:
    """Compile, and read the resources."""
    read = _resources_of_hsaco if target.backend == "hip" else _resources_of_cubin
    return read(compiled_code(variant, target), variant)


def compiled_code(variant: Variant, target: GPUTarget) -> dict[str, Any]:
    """What each stage of the compiler makes: "ptx", "cubin", "amdgcn" and so on."""
    signature = {name: _type(name, variant) for name in variant.kernel.arg_names}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in DIVISIBLE or "stride" in name or "unit" in name
    }
    source = ASTSource(variant.kernel, signature, variant.constants, divisible)
    options = {"num_warps": variant.num_warps, "enable_fp_fusion": variant.fp_fusion}
    return triton.compile(source, target=target, options=options).asm


def _type(name: str, variant: Variant) -> str:
    if name in variant.constants:
        return "constexpr"
    if name in ("logits_ptr", "grad_ptr", "x_ptr", "new_ptr", "base_ptr"):
        return "*" + variant.dtype
    if name.endswith("_ptr"):
        return POINTERS.get(name, "*fp32")
    if "stride" in name or name in ("size", "P"):
        return "i64"
    return "i32" if name in INTEGERS or "step_" in name or "unit" in name else "fp32"


def _resources_of_cubin(asm: dict[str, Any], variant: Variant) -> Resources:
    usage = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", _dump(asm["cubin"], "-res-usage")))
    # Disassembling takes longer than compiling, and only rows of logits have loops to count in.
    loops = _loops(instructions(asm["cubin"]), 16 // BYTES[variant.dtype]) if variant.vocab else [None, None]
    loads = re.findall(r"\bld\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\b", asm["ptx"])
    widest = max([int(count or 1) * int(bits) // 8 for count, bits in loads] + [4])
    spilled = int(usage["STACK"]) + int(usage.get("LOCAL", 0))
    return Resources(int(usage["REG"]), spilled, int(usage["SHARED"]), widest, *loops)


def _dump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [NVIDIA_TOOLS / "cuobjdump", option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions(cubin: bytes) -> dict[int, str]:
    """The machine code, by address."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", _dump(cubin, "-sass"))
    return {int(address, 16): text.strip() for address, text in lines}


def _resources_of_hsaco(asm: dict[str, Any], variant: Variant) -> Resources:
    text = asm["amdgcn"]

    def number(field: str) -> int:
        return int(re.search(rf"\.{field}:\s*(\d+)", text).group(1))  # type: ignore[union-attr]

    words = [int(x) for x in re.findall(r"(?:global|buffer)_load_dwordx(\d)", text)]
    # Scalar registers spill to lanes of vector registers, not to memory.
    spilled = 4 * number("vgpr_spill_count") + number("private_segment_fixed_size")
    shared = number("group_segment_fixed_size")
    return Resources(number("vgpr_count"), spilled, shared, 4 * max([*words, 1]), None, None)


def _loops(code: dict[int, str], logits_per_access: int) -> list[tuple[float, float] | None]:
    """Cost a logit of the cheapest loops that read 16 bytes at a time: those that only read, and those that write."""
    costs: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for end, text in code.items():
        jump = re.search(r"BRA\S*\s(?:\S+,\s*)?(0x[0-9a-f]+)", text)
        if jump is None or int(jump.group(1), 16) >= end:
            continue
        body = [line for address, line in code.items() if int(jump.group(1), 16) <= address <= end]
        accesses = sum(bool(re.search(r"LDG\.E[.\w]*\.128", line)) for line in body)
        logits = accesses * logits_per_access
        if logits:
            special = sum("MUFU" in line for line in body)
            writes = any(re.search(r"STG\.E[.\w]*\.128", line) for line in body)
            costs[writes].append((round(len(body) / logits, 1), round(special / logits, 2)))
    return [min(costs[writes], default=None) for writes in (False, True)]


def table(resources: Callable[[Variant, str], Resources]) -> str:
    """What `kernel_resources.csv` holds: a line for each kernel and target, in the units of `Resources`."""
    loop_columns = ("read_instructions", "read_special", "write_instructions", "write_special")
    rows = [(f"kernel by Triton {triton.__version__}", "target", "warps", *Resources._fields[:4], *loop_columns)]
    for target in TARGETS:
        for variant in variants(target):
            *numbers, read, write = resources(variant, target)
            loops = (*(read or ("", "")), *(write or ("", "")))
            rows.append((variant.name, target, variant.num_warps, *numbers, *loops))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    COMMITTED.write_text(table(lambda variant, target: compile_variant(variant, TARGETS[target])))

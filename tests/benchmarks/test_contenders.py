"""Rivals give what a case's check expects, on small inputs: their packages, or stand-ins for what is missing."""

import pytest
import torch
from rival_packages import provide

from fgrpo_kernels.bench import ops
from fgrpo_kernels.bench.case import NotHereError, Options, WrongResultError

SMALL = Options(threads=2, rows=2, parameters=256, rounds=1)
# Of ops with rivals, what these come from besides what the tests install.
PACKAGES = {
    "aggregate": ["bitsandbytes"],
    "encode": ["bitsandbytes", "pypiquant"],
    "downlink": ["zstandard"],
    "gram": [],
    "group_advantages": [],
    "robust": [],
    "token_logprobs": [],
    "linear_grpo_loss": ["liger-kernel"],
}
MAY_BE_MISSING = ("trl", "flwr")
FOR_THE_CPU = ("aggregate", "encode", "gram", "robust", "downlink")


def negated(models):
    return models._replace(new=-models.new)


@pytest.mark.parametrize("op", PACKAGES)
def test_every_contender_is_right(op, monkeypatch):
    for distribution in PACKAGES[op]:
        provide(monkeypatch, distribution)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    for case in ops.cases(op, SMALL):
        for name, make in list(case.contenders.items())[1:]:
            try:
                case.check(make)
                result = make(case.inputs())()
            except NotHereError as error:
                assert "needs a GPU" in str(error), name  # noqa: PT017
            except ModuleNotFoundError as error:
                assert error.name in MAY_BE_MISSING, name  # noqa: PT017
            else:
                assert case.describe is None or case.describe(result)["bytes"] > 0


def test_a_loss_for_gpus_says_so():
    for case in ops.cases("grpo_loss", SMALL):
        if make := case.contenders.get("liger"):
            with pytest.raises(NotHereError, match="needs a GPU"):
                make(case.inputs())


@pytest.mark.parametrize(
    ("op", "name", "other"),
    [
        pytest.param("downlink", "encode, all by one unit", negated, id="another update"),
        pytest.param("downlink", "apply, all by one unit", negated, id="another model"),
        pytest.param("gram", "int4, 8 clients", lambda encodeds: encodeds[::-1], id="other products"),
        pytest.param("aggregate", "int4, block 64", lambda d: d._replace(weights=d.weights.flip(0)), id="another mean"),
        pytest.param(
            "encode", "int4 nearest, 1 thread", lambda d: d._replace(deltas=d.deltas[::-1]), id="other values"
        ),
    ],
)
def test_a_wrong_result_is_found(op, name, other, monkeypatch):
    """That of other inputs."""
    for distribution in PACKAGES[op]:
        provide(monkeypatch, distribution)
    (case,) = (case for case in ops.cases(op, SMALL) if case.name == name)
    for contender, make in case.contenders.items():
        if contender != "flower, float32":
            with pytest.raises(WrongResultError):
                case.check(lambda data, make=make: make(other(data)))


@pytest.mark.parametrize("op", FOR_THE_CPU)
def test_an_op_of_the_cpu_says_so(op):
    with pytest.raises(NotHereError, match="is for the CPU"):
        ops.cases(op, Options(device="cuda"))

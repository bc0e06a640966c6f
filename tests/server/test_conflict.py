"""UPGrad and MGDA against their definitions and against TorchJD's weights."""

import pytest
import torch

from fgrpo.records import Report
from fgrpo.server.aggregation import MGDA, UPGrad
from fgrpo.server.geometry import Geometry
from fgrpo_kernels.codec import encode

CASES = {
    "orthogonal": torch.eye(3, 6),
    "random": torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),
    "opposed": torch.tensor([[1.0, 0.2, 0.0], [-1.0, 0.3, 0.0], [0.1, 1.0, 0.5]]),
    "many": torch.randn(7, 12, generator=torch.Generator().manual_seed(1)) + 0.3,
    "one-of-zeros": torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 1.0]]),
}
cases = pytest.mark.parametrize("deltas_KP", CASES.values(), ids=CASES)


def weights(rule, deltas_KP):
    names = [f"client{k}" for k in range(len(deltas_KP))]
    told = [Report(name, 1, 8, 8, 0.0, 0.0, 1.0, 0.0, {}, {}) for name in names]
    deltas = {name: encode(row, codec="none") for name, row in zip(names, deltas_KP, strict=True)}
    return torch.tensor(rule(told, {}, Geometry(deltas, {})), dtype=torch.float64)


@cases
@pytest.mark.parametrize("rule", [UPGrad(), MGDA()], ids=["upgrad", "mgda"])
def test_the_mean_opposes_no_client(rule, deltas_KP):
    mean_P = weights(rule, deltas_KP) @ deltas_KP.double()
    assert (deltas_KP.double() @ mean_P).min() >= -2e-3


def test_without_conflict_upgrad_counts_all_the_same():
    assert weights(UPGrad(), CASES["orthogonal"]).tolist() == pytest.approx([1 / 3] * 3)


def test_mgda_finds_the_shortest_mean():
    pair = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert weights(MGDA(), pair).tolist() == pytest.approx([0.2, 0.8], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "upgrad", "mgda"),
    [
        ("random", [0.28726, 0.11653, 0.31463, 0.28158], [0.3683, 0.0, 0.3365, 0.2952]),
        ("opposed", [0.39944, 0.39075, 0.20981], [0.5062, 0.4938, 0.0]),
        (
            "many",
            [0.27965, 0.15453, 0.08287, 0.11053, 0.10924, 0.13468, 0.1285],
            [0.352, 0.1913, 0.0, 0.1243, 0.0759, 0.1193, 0.1373],
        ),
    ],
)
def test_is_what_torchjd_gives(name, upgrad, mgda):
    """TorchJD 0.18: UPGradWeighting(projector=QuadprogProjector(norm_eps=1e-9, reg_eps=1e-7)), divided by its sum, and
    MGDAWeighting(epsilon=1e-12, max_iters=100000), of the Gram matrix in float64."""
    assert weights(UPGrad(), CASES[name]).tolist() == pytest.approx(upgrad, abs=2e-5)
    assert weights(MGDA(), CASES[name]).tolist() == pytest.approx(mgda, abs=2e-4)


def test_mgda_passes_over_a_delta_of_zeros():
    assert weights(MGDA(), CASES["one-of-zeros"]).tolist() == pytest.approx([0.6, 0.0, 0.4], abs=1e-6)

"""The model's way to those who hold an earlier one: whole, as an update or not at all, and always to the bit."""

from dataclasses import replace

import pytest
import torch

from fgrpo.errors import PayloadError
from fgrpo.wire.parameters import fingerprint
from fgrpo.wire.shipment import Outbox, Shipment

SIZE = 5001
SPECIAL = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-42, -3.4e38])


def model(step=0.0):
    generator = torch.Generator().manual_seed(3)
    params_P = 0.02 * torch.randn(SIZE, generator=generator)
    params_P = params_P + step * torch.randn(SIZE, generator=generator)
    params_P[: len(SPECIAL)] = SPECIAL
    return params_P


def test_each_gets_what_it_lacks_and_has_the_same_bits():
    outbox = Outbox(model())
    first = outbox.model
    outbox.load(model(1e-6))
    for held, held_P, kind in (
        ("", None, "whole"),
        (first, model(), "update"),
        (outbox.model, model(1e-6), "held"),
        ("somebody else's", None, "whole"),
    ):
        shipment = outbox.pack(held)
        assert shipment.kind == kind
        assert fingerprint(shipment.open(held_P)) == fingerprint(model(1e-6))


def test_an_update_of_small_steps_is_smaller_and_one_that_changes_nothing_next_to_nothing():
    outbox = Outbox(model())
    first, whole = outbox.model, outbox.pack("").nbytes
    assert whole == 4 * SIZE
    outbox.load(model(1e-6))
    assert outbox.pack(first).nbytes < 0.55 * whole
    outbox.load(model(1e-6).clone())
    assert outbox.pack(outbox.model).nbytes == 0


def test_only_the_model_before_is_kept():
    outbox = Outbox(model())
    first = outbox.model
    for step in (1e-6, 2e-6):
        outbox.load(model(step))
    assert outbox.pack(first).kind == "whole"


@pytest.mark.parametrize(
    ("change", "held_P", "reason"),
    [
        pytest.param({}, None, "none is held", id="holds-none"),
        pytest.param({}, model(2e-6), "base", id="holds-another"),
        pytest.param({"parts": (b"", b"")}, model(), "model: ", id="empty"),
        pytest.param({"model": "0" * 32}, model(), "not the model that was meant", id="meant-another"),
        pytest.param({"kind": "held"}, model(), "not the model that was meant", id="held-another"),
    ],
)
def test_what_does_not_fit_is_refused(change, held_P, reason):
    outbox = Outbox(model())
    first = outbox.model
    outbox.load(model(1e-6))
    update = outbox.pack(first)
    assert update.kind == "update"
    with pytest.raises(PayloadError, match=reason):
        replace(update, **change).open(held_P)


def test_a_whole_model_that_was_cut_is_refused():
    whole = Outbox(model()).pack("")
    with pytest.raises(PayloadError, match="not the model that was meant"):
        Shipment("whole", whole.model, (whole.parts[0][:-4],)).open(None)

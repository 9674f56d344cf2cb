"""Scale, sign and phase on networks that really have them; sampling, words and wrong input."""

from __future__ import annotations

import math

import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.graph import Axis, PermutationSpec, Stack, spec_of_stack
from neural_graphs.graph._rescaling import Kind, Rescaling, Term
from neural_graphs.testing import random_graph


def mlp(activation: str, kind: Kind, shift: float = 0.0) -> tuple[Stack, PermutationSpec]:
    """2-5-1 with one rescaling of its hidden neurons."""
    stack = Stack.mlp((2, 5, 1), activation)
    spec = spec_of_stack(stack).symmetries
    incoming = 0.0 if kind == "phase" else 1.0
    outgoing = 1.0 if kind == "phase" else -1.0
    terms = (
        *((Term("seq.0.weight", 0, incoming),) if incoming else ()),
        Term("seq.0.bias", 0, incoming, shift=shift),
        Term("seq.1.weight", 1, outgoing),
    )
    return stack, PermutationSpec(spec.axes, spec.activations, rescalings=(Rescaling(kind, "P0", terms),))


@pytest.mark.parametrize(
    ("activation", "kind", "shift"),
    [("relu", "scale", 0.0), ("tanh", "sign", 0.0), ("sine:30", "sign", 0.0), ("sine:30", "phase", math.pi / 30)],
)
def test_function_is_preserved(activation: str, kind: Kind, shift: float) -> None:
    stack, spec = mlp(activation, kind, shift)
    graph = random_graph(stack, 3)
    state = {name: value.double() for name, value in graph.to_state_dict().items()}
    x = torch.rand(20, 2, dtype=torch.float64)
    before = stack.forward(state, x)
    moved = spec.apply(state, spec.sample(0, 3, kinds=("permutation", kind)), batched=True)
    assert torch.allclose(stack.forward(moved, x), before, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(stack.forward({**moved, "seq.0.bias": state["seq.0.bias"]}, x), before, rtol=1e-3)


def test_offset_leaves_the_other_side_in_place() -> None:
    """A normalisation weight stored as ``weight + 1`` (Gemma): scaling acts on the sum."""
    term = Term("w", 0, 1.0, offset=1.0)
    spec = PermutationSpec((("w", (Axis.of("P", 3),)),), rescalings=(Rescaling("scale", "P", (term,)),))
    w = torch.tensor([0.1, 0.2, 0.3])
    s = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    moved = spec.apply({"w": w}, {"scale:0": s})["w"]
    assert torch.allclose(moved + 1, (w + 1) * s.float())
    assert moved[1] == w[1]  # a factor of 1 changes no bit
    back = spec.apply({"w": moved}, spec.invert({"scale:0": s}))["w"]
    assert torch.allclose(back, w)


def test_sampling() -> None:
    _, scaled = mlp("relu", "scale")
    assert scaled.sample(0).keys() == {"P0"}  # permutations alone unless asked
    element = scaled.sample(0, batch=2000, kinds=("scale",))
    assert element.keys() == {"scale:0"} and element["scale:0"].shape == (2000, 5)
    logs = element["scale:0"].log() / math.log(4)
    assert logs.abs().max() <= 1 and abs(float(logs.mean())) < 0.03
    assert float((logs.abs() < 0.5).double().mean()) == pytest.approx(0.5, abs=0.03)  # log-uniform
    assert scaled.sample(0, batch=2000, kinds=("scale",), spread=1.5)["scale:0"].max() <= 1.5
    assert torch.equal(element["scale:0"], scaled.sample(0, batch=2000, kinds=("scale",))["scale:0"])
    _, signed = mlp("tanh", "sign")
    coins = signed.sample(0, batch=2000, kinds=("sign",))["sign:0"]
    assert set(coins.unique().tolist()) == {-1.0, 1.0} and abs(float(coins.mean())) < 0.05
    assert signed.sample(0, kinds=("scale", "phase")) == {}


def test_narrow_types_are_rounded_once() -> None:
    _, spec = mlp("relu", "scale")
    state = {
        name: value.bfloat16()
        for name, value in random_graph(Stack.mlp((2, 5, 1), "relu"), 1)[0].to_state_dict().items()
    }
    element = spec.sample(0, kinds=("scale",))
    moved = spec.apply(state, element)
    exact = (state["seq.0.weight"].double() * element["scale:0"].unsqueeze(1)).bfloat16()
    assert moved["seq.0.weight"].dtype == torch.bfloat16 and torch.equal(moved["seq.0.weight"], exact)
    wide = spec.apply({name: value.to(torch.complex64) for name, value in state.items()}, element)
    assert torch.allclose(
        wide["seq.0.weight"].real, state["seq.0.weight"].float() * element["scale:0"].unsqueeze(1).float()
    )


def test_gradients_flow() -> None:
    stack, spec = mlp("relu", "scale")
    state = {name: value.clone().requires_grad_() for name, value in random_graph(stack, 2).to_state_dict().items()}
    moved = spec.apply(state, spec.sample(0, 2, kinds=("permutation", "scale")), batched=True)
    sum(value.square().sum() for value in moved.values()).backward()
    assert all(float(value.grad.abs().sum()) > 0 for value in state.values() if value.abs().sum() > 0)


def test_phases_do_not_compose() -> None:
    _, spec = mlp("sine:30", "phase", math.pi / 30)
    element = spec.sample(0, kinds=("permutation", "phase"))
    with pytest.raises(UserError, match="phases cannot be composed"):
        spec.compose(element, spec.identity())
    with pytest.raises(UserError, match="phases cannot be composed"):
        spec.invert(element)


def test_words() -> None:
    _, spec = mlp("relu", "scale")
    line = "  P0 (5 neurons, relu): positive scale; touches seq.0.weight, seq.0.bias, seq.1.weight"
    assert line in spec.describe().splitlines()
    assert "sign; touches" in mlp("tanh", "sign")[1].describe()
    axis = Axis(((("P", 3),), (("P", 3),)))
    packed = PermutationSpec((("w", (axis,)),), rescalings=(Rescaling("sign", "P", (Term("w", 0, 1.0, pieces=(1,)),)),))
    assert "sign; touches w[1]" in packed.describe()
    assert PermutationSpec.from_json(packed.to_json()) == packed
    assert "phase with sign; touches seq.0.bias, seq.1.weight" in mlp("sine:30", "phase", 0.1)[1].describe()


@pytest.mark.parametrize(
    ("rescaling", "message"),
    [
        (Rescaling("scale", "Q", (Term("w", 0, 1.0),)), "class Q, but no axis holds it"),
        (Rescaling("scale", "P", (Term("w", 1, 1.0),)), "axis 1 of w holds no class P"),
        (Rescaling("scale", "P", (Term("w", 2, 1.0),)), "axis 2 of w holds no class P"),
        (Rescaling("scale", "P", (Term("v", 0, 1.0),)), "axis 0 of v holds no class P"),
        (Rescaling("scale", "P", (Term("w", 0, 1.0, pieces=(1,)),)), "piece 1 of axis 0 of w holds no P"),
        (Rescaling("sign", "P", (Term("w", 0, 0.5),)), "whole exponents"),
        (Rescaling("scale", "P", (Term("w", 0, 1.0, shift=1.0),)), "cannot shift w"),
        (Rescaling("turn", "P", ()), "unknown kind of rescaling 'turn'"),
    ],
)
def test_wrong_rescalings_are_refused(rescaling: Rescaling, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PermutationSpec((("w", (Axis.of("P", 3), Axis.fixed(2))),), rescalings=(rescaling,))


def test_whole_numbers_are_not_rescaled() -> None:
    spec = PermutationSpec((("w", (Axis.of("P", 3),)),), rescalings=(Rescaling("scale", "P", (Term("w", 0, 1.0),)),))
    with pytest.raises(UserError, match="w holds torch.int64 entries"):
        spec.apply({"w": torch.arange(3)}, spec.sample(0, kinds=("scale",)))
    assert sorted(spec.apply({"w": torch.arange(3)}, spec.sample(0))["w"].tolist()) == [0, 1, 2]

"""ONNX files: every operator against ONNX's own reference, names, example inputs, and files that are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neural_graphs.errors import UserError
from neural_graphs.graph._onnx import import_onnx
from neural_graphs.graph._onnx_operators import OPERATORS

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
OPSET = 22


def random(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def save(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[int, Any]],
    weights: dict[str, Any],
    opset: int = OPSET,
    functions: list[Any] | None = None,
) -> Path:
    """A file with these nodes and the output y; `inputs` maps names to element type and shape (names for open sizes)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info("y", FLOAT, [])],  # nobody reads its shape
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions or [])
    onnx.save(model, path)
    return path


def node(kind: str, inputs: str = "x", outputs: str = "y", **attributes: Any) -> Any:
    """Inputs and outputs are words; `-` leaves an optional one out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)


X = {"x": (FLOAT, (2, 4))}
IMAGE = {"x": (FLOAT, (2, 4, 6, 6))}
SINGLES = ["Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Abs", "Neg", "Sin", "Cos", "Sign", "Softplus", "Softsign", "Mish",
           "Floor", "Ceil", "HardSwish", "Elu", "Selu", "Celu", "HardSigmoid", "LeakyRelu", "Gelu", "Softmax",
           "LogSoftmax", "Identity", "Dropout", "Reciprocal"]  # fmt: skip

# Name -> nodes behind `h = x * w`, which makes the weight w part of every graph; then inputs, more weights, opset.
CASES: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any], int]] = {
    **{kind: ([node(kind, "h")], X, {}, OPSET) for kind in SINGLES},
    "Elu 0.3": ([node("Elu", "h", alpha=0.3)], X, {}, OPSET),
    "LeakyRelu 0.2": ([node("LeakyRelu", "h", alpha=0.2)], X, {}, OPSET),
    "HardSigmoid 0.3": ([node("HardSigmoid", "h", alpha=0.3, beta=0.1)], X, {}, OPSET),
    "Gelu tanh": ([node("Gelu", "h", approximate="tanh")], X, {}, OPSET),
    "Softmax 0": ([node("Softmax", "h", axis=0)], X, {}, OPSET),
    "Softmax old": ([node("Softmax", "h")], X, {}, 11),
    "PRelu": ([node("PRelu", "h a")], IMAGE, {"a": random(4, 1, 1)}, OPSET),
    "Clip": ([node("Clip", "h - top")], X, {"top": np.float32(0.1)}, OPSET),
    "Clip both": ([node("Clip", "h low top")], X, {"low": np.float32(-0.1), "top": np.float32(0.1)}, OPSET),
    "Sqrt Log": ([node("Abs", "h", "a"), node("Sqrt", "a", "b"), node("Log", "b")], X, {}, OPSET),
    "Add bias": ([node("Add", "h b")], X, {"b": random(4)}, OPSET),
    "Sub": ([node("Sub", "b h")], X, {"b": random(4)}, OPSET),
    "Div": ([node("Div", "h two")], X, {"two": np.float32(2)}, OPSET),
    "Pow": ([node("Pow", "h two")], X, {"two": np.float32(2)}, OPSET),
    "Sum": ([node("Sum", "h b x")], X, {"b": random(4)}, OPSET),
    "Mean": ([node("Mean", "h b x")], X, {"b": random(4)}, OPSET),
    "Min": ([node("Min", "h b x")], X, {"b": random(4)}, OPSET),
    "Max": ([node("Max", "h zero")], X, {"zero": np.float32(0)}, OPSET),
    "Where": ([node("Greater", "h b", "c"), node("Where", "c h x")], X, {"b": random(4)}, OPSET),
    "Logic": ([node("Less", "h b", "c"), node("LessOrEqual", "h b", "d"), node("GreaterOrEqual", "h b", "e"),
               node("Equal", "h b", "f"), node("Or", "c f", "g"), node("And", "g d", "i"), node("Not", "i", "j"),
               node("Xor", "j e", "k"), node("Where", "k h x")], X, {"b": random(4)}, OPSET),
    "Cast": ([node("Greater", "h b", "c"), node("Cast", "c", "d", to=FLOAT), node("Mul", "d h")], X, {"b": random(4)},
             OPSET),
    "MatMul": ([node("MatMul", "h v")], X, {"v": random(4, 3)}, OPSET),
    "Gemm": ([node("Gemm", "h v b")], X, {"v": random(4, 3), "b": random(3)}, OPSET),
    "Gemm transposed": ([node("Gemm", "h v b", transB=1)], X, {"v": random(3, 4), "b": random(3)}, OPSET),
    "Gemm single": ([node("Gemm", "h v b", transB=1)], X, {"v": random(3, 4), "b": random(1)}, OPSET),
    "Gemm scaled": ([node("Gemm", "h v b", transA=1, alpha=0.5, beta=2.0)], X, {"v": random(2, 3), "b": random(3)}, OPSET),
    "Einsum": ([node("Einsum", "h v", equation="bi,io->bo")], X, {"v": random(4, 3)}, OPSET),
    "Conv": ([node("Conv", "h v b", pads=[1, 1, 1, 1], strides=[2, 2])], IMAGE, {"v": random(3, 4, 3, 3), "b": random(3)},
             OPSET),
    "Conv grouped": ([node("Conv", "h v", group=4, dilations=[2, 2])], IMAGE, {"v": random(4, 1, 2, 2)}, OPSET),
    "Conv uneven": ([node("Conv", "h v", pads=[0, 1, 2, 3])], IMAGE, {"v": random(3, 4, 3, 3)}, OPSET),
    "Conv same": ([node("Conv", "h v", auto_pad="SAME_UPPER", strides=[2, 2])], IMAGE, {"v": random(3, 4, 3, 3)}, OPSET),
    "Conv valid": ([node("Conv", "h v", auto_pad="VALID")], IMAGE, {"v": random(3, 4, 3, 3)}, OPSET),
    "Conv 1d": ([node("Conv", "h v")], {"x": (FLOAT, (2, 4, 6))}, {"v": random(3, 4, 3)}, OPSET),
    "ConvTranspose": ([node("ConvTranspose", "h v b", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])], IMAGE,
                      {"v": random(4, 3, 3, 3), "b": random(3)}, OPSET),
    "MaxPool": ([node("MaxPool", "h", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], IMAGE, {}, OPSET),
    "AveragePool": ([node("AveragePool", "h", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], IMAGE, {}, OPSET),
    "AveragePool padded": ([node("AveragePool", "h", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], IMAGE,
                           {}, OPSET),
    "GlobalAveragePool": ([node("GlobalAveragePool", "h")], IMAGE, {}, OPSET),
    "GlobalMaxPool": ([node("GlobalMaxPool", "h")], IMAGE, {}, OPSET),
    "BatchNormalization": ([node("BatchNormalization", "h s b m v", epsilon=0.1)], IMAGE,
                           {"s": random(4), "b": random(4) * 2, "m": random(4) * 3, "v": random(4) ** 2}, OPSET),
    "InstanceNormalization": ([node("InstanceNormalization", "h s b")], IMAGE, {"s": random(4), "b": random(4)}, OPSET),
    "LayerNormalization": ([node("LayerNormalization", "h s b", axis=-1)], X, {"s": random(4), "b": random(4) * 2}, OPSET),
    "LayerNormalization plain": ([node("LayerNormalization", "h s", axis=1)], IMAGE, {"s": random(4, 6, 6)}, OPSET),
    "GroupNormalization": ([node("GroupNormalization", "h s b", num_groups=2)], IMAGE, {"s": random(4), "b": random(4)},
                           OPSET),
    "Reshape": ([node("Reshape", "h n")], IMAGE, {"n": np.array([0, -1, 6])}, OPSET),
    "Flatten": ([node("Flatten", "h")], IMAGE, {}, OPSET),
    "Flatten 2": ([node("Flatten", "h", axis=-2)], IMAGE, {}, OPSET),
    "Transpose": ([node("Transpose", "h", perm=[0, 2, 3, 1])], IMAGE, {}, OPSET),
    "Transpose all": ([node("Transpose", "h")], IMAGE, {}, OPSET),
    "Unsqueeze Squeeze": ([node("Unsqueeze", "h n", "a"), node("Squeeze", "a m")], X,
                          {"n": np.array([0, -1]), "m": np.array([0])}, OPSET),
    "Squeeze all": ([node("Unsqueeze", "h n", "a"), node("Squeeze", "a")], X, {"n": np.array([0, -1])}, OPSET),
    "Unsqueeze old": ([node("Unsqueeze", "h", axes=[1])], X, {}, 11),
    "Expand": ([node("Expand", "h n")], X, {"n": np.array([3, 1, 4])}, OPSET),
    "Concat": ([node("Concat", "h x", axis=-1)], X, {}, OPSET),
    "Split": ([node("Split", "h n", "a b", axis=1), node("Concat", "b a", axis=1)], X, {"n": np.array([1, 3])}, OPSET),
    "Split evenly": ([node("Split", "h", "a b", axis=1, num_outputs=2), node("Sub", "b a")], X, {}, OPSET),
    "Slice": ([node("Slice", "h s e a t")], IMAGE,
              {"s": np.array([1, -4]), "e": np.array([9, -1]), "a": np.array([1, 3]), "t": np.array([2, 1])}, OPSET),
    "Slice old": ([node("Slice", "h", starts=[1], ends=[3], axes=[1])], X, {}, 9),
    "Gather one": ([node("Gather", "h n", axis=1)], X, {"n": np.array(-1)}, OPSET),
    "Gather run": ([node("Gather", "h n", axis=1)], X, {"n": np.array([1, 2])}, OPSET),
    "Gather some": ([node("Gather", "h n", axis=1)], X, {"n": np.array([[0, 3], [2, -1]])}, OPSET),
    "Pad": ([node("Pad", "h n f")], X, {"n": np.array([0, 1, 0, 2]), "f": np.float32(0.5)}, OPSET),
    "Pad reflect": ([node("Pad", "h n", mode="reflect")], IMAGE, {"n": np.array([0, 0, 1, 2, 0, 0, 2, 1])}, OPSET),
    "Pad edge": ([node("Pad", "h n", mode="edge")], IMAGE, {"n": np.array([0, 0, 1, 2, 0, 0, 2, 1])}, OPSET),
    "Pad old": ([node("Pad", "h", pads=[0, 1, 0, 0])], X, {}, 10),
    "Shape": ([node("Shape", "x", "s"), node("Gather", "s n", "t"), node("Mul", "t two", "u"), node("Reshape", "h u")],
              IMAGE, {"n": np.array([0, 1]), "two": np.array([1, 36])}, OPSET),
    "Size": ([node("Size", "x", "s"), node("Cast", "s", "t", to=FLOAT), node("Div", "h t")], X, {}, OPSET),
    "Mod": ([node("Shape", "x", "s"), node("Mod", "s three", "t"), node("Cast", "t", "u", to=FLOAT),
             node("Gather", "u n", "v"), node("Mul", "h v")], X, {"three": np.array([3, 3]), "n": np.array(1)}, OPSET),
    "ConstantOfShape": ([node("ConstantOfShape", "n", "o", value=helper.make_tensor("v", FLOAT, [1], [0.5])),
                         node("Add", "h o")], X, {"n": np.array([2, 4])}, OPSET),
    "Range": ([node("Range", "a b c", "r"), node("Cast", "r", "s", to=FLOAT), node("Add", "h s")], X,
              {"a": np.array(1), "b": np.array(9), "c": np.array(2)}, OPSET),
    "Trilu": ([node("Trilu", "h n", upper=0)], IMAGE, {"n": np.array(1)}, OPSET),
    "Constant": ([node("Constant", "", "c", value_float=2.0), node("Mul", "h c")], X, {}, OPSET),
    "Constant list": ([node("Constant", "", "c", value_ints=[4, 2]), node("Reshape", "h c")], X, {}, OPSET),
    "Constant tensor": ([node("Constant", "", "c", value=numpy_helper.from_array(random(4))), node("Add", "h c")], X, {},
                        OPSET),
    "ReduceMean": ([node("ReduceMean", "h n", keepdims=0)], IMAGE, {"n": np.array([2, -1])}, OPSET),
    "ReduceMean old": ([node("ReduceMean", "h", axes=[1])], X, {}, 13),
    "ReduceMean nothing": ([node("ReduceMean", "h", noop_with_empty_axes=1)], X, {}, OPSET),
    "ReduceSum": ([node("ReduceSum", "h")], X, {}, OPSET),
    "ReduceMax": ([node("ReduceMax", "h n")], X, {"n": np.array([1])}, OPSET),
    "ReduceMin": ([node("ReduceMin", "h n")], X, {"n": np.array([1])}, OPSET),
    "ReduceL2": ([node("ReduceL2", "h n")], X, {"n": np.array([1])}, OPSET),
    "ReduceSumSquare": ([node("ReduceSumSquare", "h n")], X, {"n": np.array([1])}, OPSET),
    "DepthToSpace": ([node("DepthToSpace", "h", blocksize=2, mode="CRD")], IMAGE, {}, OPSET),
    "DepthToSpace rows": ([node("DepthToSpace", "h", blocksize=2, mode="DCR")], IMAGE, {}, OPSET),
    "Resize nearest": ([node("Resize", "h - s", mode="nearest", coordinate_transformation_mode="asymmetric",
                             nearest_mode="floor")], IMAGE, {"s": np.array([1, 1, 2, 2], np.float32)}, OPSET),
    "Resize linear": ([node("Resize", "h - - s", mode="linear", coordinate_transformation_mode="half_pixel")], IMAGE,
                      {"s": np.array([2, 4, 12, 9])}, OPSET),
    "Resize corners": ([node("Resize", "h - - s", mode="linear", coordinate_transformation_mode="align_corners")], IMAGE,
                       {"s": np.array([2, 4, 12, 9])}, OPSET),
    "Round": ([node("Round", "h", "r"), node("Add", "r h")], X, {}, OPSET),
    "RMSNormalization": ([node("RMSNormalization", "h s", axis=-1)], X, {"s": random(4)}, 23),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators(name: str, tmp_path: Path) -> None:
    nodes, inputs, weights, opset = CASES[name]
    rank = len(inputs["x"][1])
    weights = {"w": 0.5 + random(4, *[1] * (rank - 2)) ** 2, **weights}
    path = save(tmp_path / "n.onnx", [node("Mul", "x w", "h"), *nodes], inputs, weights, opset)
    module, example, _ = import_onnx(path)
    assert example.shape == inputs["x"][1]
    (expected,) = ReferenceEvaluator(str(path)).run(None, {"x": example.numpy()})
    with torch.no_grad():
        found = module(example)
    assert found.shape == expected.shape
    assert np.allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(module, (example,), strict=False).module()
    assert torch.equal(exported(example), found)


def test_max_pool_with_uneven_pads(tmp_path: Path) -> None:
    """Against torch: ONNX's reference mixes the axes up here."""
    nodes = [node("Mul", "x w", "h"), node("MaxPool", "h", kernel_shape=[2, 2], pads=[0, 0, 1, 2])]
    module, example, _ = import_onnx(save(tmp_path / "n.onnx", nodes, IMAGE, {"w": random(4, 1, 1)}))
    padded = torch.nn.functional.pad(example * module.w, (0, 2, 0, 1), value=-torch.inf)
    assert torch.equal(module(example), torch.nn.functional.max_pool2d(padded, 2, 1))


def test_every_operator_has_a_case() -> None:
    used = {entry.op_type for nodes, *_ in CASES.values() for entry in nodes}
    assert OPERATORS.keys() - used - {"Mul"} == set()


# -- names, inputs ------------------------------------------------------------------------------------------------------


def test_weights_keep_their_names_and_precision(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x net.0.weight net.0.bias", "h", transB=1), node("BatchNormalization", "h a::b s m v", "n"),
             node("Add", "n net", "i"), node("Mul", "i half")]  # fmt: skip
    weights = {
        "net.0.weight": random(3, 4), "net.0.bias": random(3), "a::b": random(3), "s": random(3), "m": random(3),
        "v": random(3) ** 2, "half": np.float32(0.5), "net": random(1), "unused": random(5),
    }  # fmt: skip
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    path = save(tmp_path / "n.onnx", nodes, {"x": (TensorProto.DOUBLE, ("n", 4))}, weights)
    module, example, notes = import_onnx(path)
    state = module.state_dict()
    assert state.keys() == {"net.0.weight", "net.0.bias", "a__b", "s", "m", "v", "net_"}
    assert {name for name, _ in module.named_parameters()} == state.keys() - {"m", "v"}
    assert np.array_equal(state["net.0.weight"].numpy(), weights["net.0.weight"])
    assert example.dtype == torch.float64
    assert len(notes) == 1 and notes[0].startswith("1 tensors")


def test_open_sizes(tmp_path: Path) -> None:
    path = save(tmp_path / "n.onnx", [node("MatMul", "x w")], {"x": (FLOAT, ("n", "length", 4))}, {"w": random(4, 3)})
    with pytest.raises(UserError, match=r"input x is \?x\?x4, with open sizes"):
        import_onnx(path)
    module, example, _ = import_onnx(path, [((7, 4), None)])
    assert example.shape == (16, 7, 4)
    assert module(example).shape == (16, 7, 3)
    for wrong in ((7, 5), (4,)):
        with pytest.raises(UserError, match=r"input x is \?x\?x4"):
            import_onnx(path, [(wrong, None)])
    with pytest.raises(UserError, match="1 inputs"):
        import_onnx(path, [((7, 4), None), ((7, 4), None)])
    fixed = save(tmp_path / "f.onnx", [node("MatMul", "x w")], {"x": (FLOAT, (5, 4))}, {"w": random(4, 3)})
    assert import_onnx(fixed)[1].shape == import_onnx(fixed, [((4,), None)])[1].shape == (5, 4)


def test_ids_stay_below_the_table_that_they_look_up(tmp_path: Path) -> None:
    nodes = [node("Cast", "ids", "i", to=INT), node("Gather", "table i", "e"), node("Mul", "e gate")]
    inputs = {"ids": (TensorProto.INT32, ("n", 50)), "gate": (FLOAT, ("n", 50, 3))}
    path = save(tmp_path / "n.onnx", nodes, inputs, {"table": random(7, 3)})
    module, (ids, gate), _ = import_onnx(path)
    assert (ids.dtype, int(ids.max())) == (torch.int32, 6)
    assert torch.equal(module(ids, gate), module.table[ids.long()] * gate)
    assert int(import_onnx(path, [((50,), 3), ((50, 3), None)])[1][0].max()) == 2


def test_functions_of_the_file_are_read(tmp_path: Path) -> None:
    body = helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", OPSET)]
    )
    nodes = [node("MatMul", "x w", "h"), helper.make_node("Twice", ["h"], ["y"], domain="own")]
    path = save(tmp_path / "n.onnx", nodes, X, {"w": random(4, 3)}, functions=[body])
    module, example, _ = import_onnx(path)
    assert torch.allclose(module(example), 2 * example @ module.w)


# -- what is refused ------------------------------------------------------------------------------------------------


REFUSED: list[tuple[list[Any], dict[str, Any], str]] = [
    ([node("GRU", "x a b", hidden_size=3)], {}, "the ONNX operator GRU (node y) is not supported"),
    ([helper.make_node("Attention", ["x"], ["y"], name="att", domain="own")], {}, "own::Attention (node att)"),
    ([node("Softmax", "x", axis=9)], {}, "Softmax (node y) fails"),
    ([node("Slice", "x s e a t")], {"s": np.array([3]), "e": np.array([0]), "a": np.array([0]), "t": np.array([-1])},
     "Slice (node y): slices that run backwards"),
    ([node("Cast", "x", "i", to=INT), node("Gather", "w i", axis=1)], {}, "Gather (node y): places that depend"),
    ([node("Cast", "x", "i", to=INT), node("Reshape", "w i")], {}, "Reshape (node y): input 2 depends"),
    ([node("BatchNormalization", "x s s s s", "y m v", training_mode=1)], {"s": random(4)}, "export the network in eval"),
    ([node("MaxPool", "x", "y z", kernel_shape=[2])], {}, "output 2 of the ONNX operator MaxPool"),
    ([node("Resize", "x - - s")], {"s": np.array([2, 8])}, "Resize (node y): only the axes behind batch and channels"),
    ([node("Resize", "x - - s", mode="cubic")], {"s": np.array([2, 4])}, "Resize (node y): the mode cubic"),
    ([node("Relu", "x")], {}, "the file holds no network"),
    ([node("Mul", "x q")], {"q": np.ones(4, np.uint32)}, "q holds uint32 numbers"),
    ([node("MatMul", "x c")], {"c": np.ones((4, 4), np.complex64)}, "c holds complex64 numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "weights", "words"), REFUSED)
def test_what_is_not_covered_is_named(nodes: list[Any], weights: dict[str, Any], words: str, tmp_path: Path) -> None:
    used = {name for entry in nodes for name in entry.input}
    extra = {name: random(4, 4) for name in ("a", "b", "w") if name in used and name not in weights}
    path = tmp_path / "n.onnx"
    inputs = {"x": (FLOAT, (2, 4, 6))} if "kernel_shape" in str(nodes) else X
    save(path, nodes, inputs, {**extra, **weights})
    with pytest.raises(UserError) as error:
        import_onnx(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.onnx", [node("MatMul", "x w")], X, {"w": random(4, 64)}).read_bytes()
    for content in (b"", b"no network", os.urandom(200), whole[: len(whole) // 2], whole[:10]):
        (tmp_path / "n.onnx").write_bytes(content)
        with pytest.raises(UserError, match="n.onnx") as error:
            import_onnx(tmp_path / "n.onnx")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="there is no file"):
        import_onnx(tmp_path / "absent.onnx")


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/hostname", "absent.bin"])
def test_external_data_outside_the_folder_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    (tmp_path / "in").mkdir()
    path = save(tmp_path / "in/n.onnx", [node("MatMul", "x w")], X, {"w": random(4, 3)})
    model = onnx.load(path)
    (weight,) = model.graph.initializer
    onnx.external_data_helper.set_external_data(weight, place, 0, 48)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="cannot read"):
        import_onnx(path)


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "n.onnx", [node("MatMul", "x w")], X, {"w": random(4, 3)})
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="n.bin", size_threshold=0)
    assert (tmp_path / "n.bin").stat().st_size == 48
    assert np.array_equal(import_onnx(path)[0].state_dict()["w"].numpy(), random(4, 3))

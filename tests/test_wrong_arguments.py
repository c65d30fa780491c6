"""Every operator, every argument: whatever is wrong with it is an exception that names it, and nothing is changed.

What can be wrong follows from the schema: a new operator gets its valid arguments in `VALID`, and says there which
dtypes and shapes beside those are right too. What is said to be right must not raise.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers import FLOATS, STORAGES, Weight, check_error, exactly_equal, generator, operator_of, ops, short
from optimizers import Problem, gradient
from torch import Tensor

from bitsandbytes_intel import ops as our
from bitsandbytes_intel import reference

DTYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
)  # fmt: skip
# What can be wrong with a tensor's shape, where it has the dimensions for it.
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "a row less": lambda t: t[:-1] if t.dim() else t.expand(2).clone(),
    "a column less": lambda t: t[..., :-1],
    "no element": lambda t: t[:0] if t.dim() else t.reshape(1)[:0],
    "no dimension": lambda t: t.flatten()[0],
    "a dimension more": lambda t: t.unsqueeze(0),
}


@dataclass(frozen=True)
class Valid:
    """Valid arguments of an operator, made on a device, and what else is as right.

    ``dtypes``: of an argument, beside its own. ``shapes``: of an argument, those of `SHAPES` that are right, and why.
    ``optional``: tensors that may be None beside the rest, and why. ``blames``: other arguments that an error may name
    where an argument does not go with them.
    """

    arguments: Callable[[str], dict[str, Any]]
    dtypes: dict[str, tuple[torch.dtype, ...]] = field(default_factory=dict)
    shapes: dict[str, dict[str, str]] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)
    blames: dict[str, tuple[str, ...]] = field(default_factory=dict)


def on_device(device: str, **arguments: Any) -> dict[str, Any]:
    return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in arguments.items()}


def integers(*shape: int, dtype: torch.dtype = torch.int8, seed: int = 0) -> Tensor:
    return torch.randint(0, 100, shape, dtype=dtype, generator=generator(seed))


def dequantize_4bit(device: str) -> dict[str, Any]:
    w = Weight.random(20, 50).to(device)
    return {
        "A": w.packed,
        "absmax": w.absmax,
        "blocksize": 64,
        "quant_type": "nf4",
        "shape": [20, 50],
        "dtype": torch.float16,
    }


def dequantize_blockwise(device: str) -> dict[str, Any]:
    A = integers(20, 50, dtype=torch.uint8)
    return on_device(
        device, A=A, absmax=torch.rand(16), code=torch.linspace(-1, 1, 256), blocksize=64, dtype=torch.float16
    )


def gemv_4bit(device: str) -> dict[str, Any]:
    w, A = Weight.random(20, 64), torch.randn(3, 64, generator=generator(1)).half()
    code = reference.codebook("nf4")
    return on_device(device, A=A, B=w.packed, shapeB=[20, 64], absmax=w.absmax, code=code, blocksize=64)


def gemm_4bit(device: str) -> dict[str, Any]:
    w, A = Weight.random(20, 64, nested=True), torch.randn(3, 64, generator=generator(1)).half()
    given = {"A": A, "B": w.packed, "shapeB": [20, 64], "absmax": w.absmax, "blocksize": 64, "quant_type": "nf4"}
    return on_device(device, **given, bias=torch.ones(20).half(), **w.nested)


def int8_scaled_mm(device: str) -> dict[str, Any]:
    given = {"A": integers(5, 64), "B": integers(24, 64), "row_stats": torch.rand(5), "col_stats": torch.rand(24)}
    return on_device(device, **given, bias=torch.ones(24), dtype=torch.float16)


def int8_mm_dequant(device: str) -> dict[str, Any]:
    given = {"A": integers(20, 64, dtype=torch.int32), "row_stats": torch.rand(20), "col_stats": torch.rand(64)}
    return on_device(device, **given, dtype=torch.float16, bias=torch.ones(64))


def int8_mixed_scaled_mm(device: str) -> dict[str, Any]:
    return on_device(
        device,
        A=torch.randn(5, 64, generator=generator(1)).half(),
        CA=integers(5, 64),
        CB=integers(33, 64),
        SCA=torch.rand(5),
        SCB=torch.rand(33),
        outlier_cols=torch.tensor([3, 60]),
        bias=torch.ones(33).half(),
    )


def with_out(make: Callable[[str], dict[str, Any]], *shape: int, dtype: torch.dtype) -> Callable[[str], dict[str, Any]]:
    """The arguments of an operator's variant that writes to `out`."""
    return lambda device: {**make(device), "out": torch.ones(shape, dtype=dtype, device=device)}


def optimizer_32bit(device: str) -> dict[str, Any]:
    problem = Problem.random("adam", (300,), torch.float32, 32).to(device)
    norm = torch.ones(1, device=device)
    return problem.arguments(gradient((300,), torch.float32, 1).to(device), 1, max_unorm=1.0, unorm_vec=norm)


def optimizer_8bit(name: str) -> Callable[[str], dict[str, Any]]:
    def arguments(device: str) -> dict[str, Any]:
        problem = Problem.random(name, (300,), torch.float32, 8).to(device)
        return problem.arguments(gradient((300,), torch.float32, 1).to(device), 1)

    return arguments


FLAT = {"a dimension more": "read flat"}
FLAT_OF_ONE = {**FLAT, "no dimension": "of one element"}
ANY_SHAPE = dict.fromkeys(SHAPES, "any shape will do")
ANY_ROWS = {"a row less": "any number of rows", "no element": "no row", "a dimension more": "any batch"}
OUT = {"dtype": ("out",), "shape": ("out", "A"), "A": ("out",), "shapeB": ("out", "A", "B")}
FLAT_8BIT = {"A": ANY_SHAPE, "absmax": FLAT, "code": FLAT}
LINEAR = {"A": ANY_ROWS, "B": FLAT, "absmax": FLAT, "code": FLAT}
LINEAR_OUT = {"B": FLAT, "absmax": FLAT, "code": FLAT}
NOT_NEEDED = "it may be missing"
STATES = ("g", "p", "state1", "state2", "unorm_vec", "qmap1", "qmap2", "absmax1", "absmax2")
OPTIMIZER = {
    "shapes": dict.fromkeys(STATES, FLAT) | {"unorm_vec": FLAT_OF_ONE},
    "blames": {"g": ("p",), "optimizer_name": ("state1",)},
}

INT8_ROWS = {**ANY_ROWS, "a column less": "any number of columns"}
VALID = {
    "dequantize_4bit": Valid(
        dequantize_4bit, {"A": STORAGES, "dtype": FLOATS}, {"A": FLAT, "absmax": FLAT}, blames={"shape": ("A",)}
    ),
    "dequantize_4bit.out": Valid(
        with_out(dequantize_4bit, 20, 50, dtype=torch.float16), {"A": STORAGES}, {"A": FLAT, "absmax": FLAT}, blames=OUT
    ),
    "dequantize_blockwise": Valid(dequantize_blockwise, {"dtype": FLOATS}, FLAT_8BIT),
    "dequantize_blockwise.out": Valid(
        with_out(dequantize_blockwise, 20, 50, dtype=torch.float16), {}, {"absmax": FLAT, "code": FLAT}, blames=OUT
    ),
    "quantize_4bit": Valid(
        lambda device: {
            "A": torch.ones(20, 64, device=device),
            "blocksize": 64,
            "quant_type": "nf4",
            "quant_storage": torch.uint8,
        },
        {"A": FLOATS, "quant_storage": STORAGES},
        {"A": ANY_SHAPE},
    ),
    "quantize_blockwise": Valid(
        lambda device: on_device(device, A=torch.ones(20, 64), code=torch.linspace(-1, 1, 256), blocksize=100),
        {"A": FLOATS},
        {"A": ANY_SHAPE, "code": FLAT},
    ),
    "gemv_4bit": Valid(gemv_4bit, {"A": FLOATS, "B": STORAGES}, LINEAR, blames={"shapeB": ("A", "B")}),
    "gemv_4bit.out": Valid(with_out(gemv_4bit, 3, 20, dtype=torch.float16), {"B": STORAGES}, LINEAR_OUT, blames=OUT),
    "gemm_4bit": Valid(
        gemm_4bit,
        {"B": STORAGES, "absmax_offset": FLOATS},
        LINEAR | {"absmax": FLAT_OF_ONE, "absmax_8bit": FLAT, "absmax_code": FLAT, "absmax_offset": FLAT},
        {"bias": NOT_NEEDED},
        {"A": ("bias",), "shapeB": ("A", "B")},
    ),
    "int8_linear_matmul": Valid(
        lambda device: on_device(device, A=integers(20, 64), B=integers(24, 64)),
        {},
        {"A": ANY_ROWS, "B": {"a row less": "any N", "no element": "any N"}},
    ),
    "int8_linear_matmul.out": Valid(
        with_out(lambda device: on_device(device, A=integers(20, 64), B=integers(24, 64)), 20, 24, dtype=torch.int32),
        blames={"A": ("out",), "B": ("out",)},
    ),
    "int8_vectorwise_quant": Valid(
        lambda device: {"A": torch.ones(20, 64, device=device), "threshold": 6.0}, {"A": FLOATS}, {"A": INT8_ROWS}
    ),
    "int8_double_quant": Valid(
        lambda device: {"A": torch.ones(20, 64, device=device), "threshold": 6.0}, {"A": FLOATS}, {"A": INT8_ROWS}
    ),
    "int8_vectorwise_dequant": Valid(
        lambda device: on_device(device, A=integers(20, 64), stats=torch.rand(20)),
        {"stats": FLOATS},
        {"A": {"a column less": "any K", **FLAT}, "stats": {**FLAT, "no dimension": "one for all rows"}},
        blames={"A": ("stats",)},
    ),
    "int8_mm_dequant": Valid(
        int8_mm_dequant,
        {"dtype": FLOATS, "bias": FLOATS},
        {"A": FLAT, "row_stats": FLAT, "col_stats": FLAT},
        {"bias": NOT_NEEDED},
        {"A": ("row_stats", "col_stats")},
    ),
    "int8_scaled_mm": Valid(
        int8_scaled_mm,
        {"dtype": FLOATS, "bias": FLOATS},
        {"A": FLAT, "row_stats": FLAT, "col_stats": FLAT},
        {"bias": NOT_NEEDED},
        {"A": ("row_stats",), "B": ("col_stats",)},
    ),
    "int8_mixed_scaled_mm": Valid(
        int8_mixed_scaled_mm,
        {"A": FLOATS, "bias": FLOATS},
        {
            "A": FLAT,
            "CA": FLAT,
            "SCA": FLAT,
            "SCB": FLAT,
            "outlier_cols": {"a row less": "any number of columns", "no element": "no outliers"},
        },
        {"outlier_cols": "no outliers", "bias": NOT_NEEDED},
        {"CA": ("A", "SCA"), "CB": ("SCB",)},
    ),
    "optimizer_update_32bit": Valid(optimizer_32bit, **OPTIMIZER),
    "optimizer_update_8bit_blockwise": Valid(optimizer_8bit("adam"), **OPTIMIZER),
}
BLOCKSIZES_4BIT = (0, -64, 16, 48, 8192, 2**40)
STRINGS = {"quant_type": ("", "NF4", "int4", "nf4 "), "optimizer_name": ("", "Adam", "sgdm", "adam ", "nf4")}
# A number of an optimizer is taken as it is, as bitsandbytes takes it: NaN and negative ones too.
ANY_NUMBER = (
    "max_unorm", "param_norm", "beta1", "beta2", "beta3", "alpha", "eps", "weight_decay", "lr", "gnorm_scale"
)  # fmt: skip


def integers_of(operator: str, argument: str) -> tuple[int, ...]:
    """Wrong values of an int."""
    if argument == "step":
        return (0, -1, 2**31)
    return BLOCKSIZES_4BIT if "4bit" in operator else (0, -1, -(2**63))


def kind_of(operator: str, argument: Any) -> str:
    """What an argument is, None aside. A schema holds a dtype as an int."""
    if isinstance(VALID[operator].arguments("cpu").get(argument.name), torch.dtype):
        return "dtype"
    kind = str(argument.type)
    return "sizes" if kind == "List[int]" else kind.removeprefix("Optional[").removesuffix("]")


def is_alone(operator: str) -> bool:
    """Whether the operator has a single tensor."""
    return sum(isinstance(value, Tensor) for value in VALID[operator].arguments("cpu").values()) == 1


def mutations(operator: str, argument: Any, given: Any, device: str) -> Iterator[tuple[str, Any]]:
    """What can be wrong with an argument of a schema, and the wrong value."""
    yield "of a wrong type", object()
    kind, alone = kind_of(operator, argument), is_alone(operator)
    is_optional = str(argument.type).startswith("Optional")
    # None is torch's False; and instead of the only tensor, it leaves torch no device whose kernel to call.
    if not is_optional and kind != "bool" and not (alone and kind == "Tensor"):
        yield "None", None
    if kind == "Tensor":
        if is_optional:
            yield "missing", None
        for dtype in DTYPES:
            if dtype != given.dtype:
                yield short(dtype), given.to(dtype)
        yield from ((name, spoil(given)) for name, spoil in SHAPES.items() if name in shapes_of(given))
        # With one tensor alone, the call is that device's own affair.
        if not alone:
            if device == "xpu" or torch.xpu.is_available():  # not so under `make sanitize`
                yield "on another device", given.to("xpu" if device == "cpu" else "cpu")
            yield "on meta", given.to("meta")
    elif kind == "int":
        yield from ((str(value), value) for value in integers_of(operator, argument.name))
    elif kind == "sizes":
        sizes = {"of a negative size": [-given[0], given[1]], "of two negative sizes": [-given[0], -given[1]]}
        sizes |= {"too large": [2**40, 2**40], "beyond the codes": [given[0] + 1, given[1]]}
        if argument.name == "shapeB":
            sizes |= {"of one size": given[:1], "of three sizes": [1, *given], "of no size": []}
        yield from sizes.items()
    elif kind == "str":
        yield from ((repr(value), value) for value in STRINGS[argument.name])
    elif kind == "dtype":
        yield from ((short(dtype), dtype) for dtype in DTYPES if dtype != given)
    elif argument.name == "threshold":
        yield from (("negative", -1.5), ("NaN", float("nan")))
    else:
        assert argument.name in (*ANY_NUMBER, "skip_zeros"), f"what is wrong with {argument.name}?"


def shapes_of(tensor: Tensor) -> list[str]:
    """Those of `SHAPES` that change this one."""
    dims = {"a column less": 2, "no dimension": 1}
    return [name for name in SHAPES if tensor.dim() >= dims.get(name, 0)]


def is_right(valid: Valid, argument: str, what: str) -> bool:
    """Whether the table says that such a change is none for the worse."""
    if what == "missing":
        return argument in valid.optional
    return what in valid.shapes.get(argument, {}) or what in map(short, valid.dtypes.get(argument, ()))


def check(operator: str, argument: str, what: str, value: Any, device: str) -> None:
    """One call with one wrong argument, or one that the table says is right."""
    valid = VALID[operator]
    given = {**valid.arguments(device), argument: value}
    before = {name: v.clone() for name, v in given.items() if isinstance(v, Tensor) and v.dim()}
    if is_right(valid, argument, what):
        operator_of(operator)(**given)
        return
    if what == "on meta":
        # torch gives a call with any meta tensor to bitsandbytes' fake kernel, which need not raise: ours is not run.
        with contextlib.suppress(RuntimeError):
            operator_of(operator)(**given)
    else:
        with pytest.raises((RuntimeError, ValueError, TypeError)) as error:
            operator_of(operator)(**given)
        text = str(error.value).split("\nException raised from")[0]
        names = (argument, *valid.blames.get(argument, ()))
        assert any(re.search(rf"\b{name}\b", text) for name in names), text
        # What came and what should have: of our own checks, beyond those of torch's dispatcher.
        if what not in ("of a wrong type", "None"):
            assert re.match(rf"{re.escape(operator)}: .* must .*got", text), text
    for name, tensor in before.items():
        if not tensor.is_meta:
            exactly_equal(given[name].view(torch.uint8), tensor.view(torch.uint8))


def schema_of(operator: str) -> list[Any]:
    return operator_of(operator)._schema.arguments


ARGUMENTS = [(name, argument.name) for name in VALID for argument in schema_of(name)]


def test_every_operator_is_here():
    assert set(VALID) == {operator.name for operator in our.OPERATORS}


@pytest.mark.parametrize(("operator", "argument"), ARGUMENTS, ids=map("-".join, ARGUMENTS))
def test_a_wrong_argument_is_named(operator, argument, device, capfd):
    given = VALID[operator].arguments(device)
    schema = next(a for a in schema_of(operator) if a.name == argument)
    wrong = list(mutations(operator, schema, given.get(argument), device))
    failed = []
    for what, value in wrong:
        try:
            check(operator, argument, what, value, device)
        except (AssertionError, RuntimeError, pytest.fail.Exception) as error:
            failed.append(f"{argument} {what}: {error}")
    assert not failed, "\n".join(failed)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


@pytest.mark.parametrize("operator", VALID)
def test_the_valid_arguments_are_valid(operator, device):
    """And all of them are given, so that each can be wrong."""
    given = VALID[operator].arguments(device)
    assert set(given) >= {a.name for a in schema_of(operator) if a.name != "skip_zeros"}
    operator_of(operator)(**given)


@pytest.mark.parametrize("operator", VALID)
def test_every_tensor_has_a_wrong_dtype_device_and_shape(operator):
    """Unless it is the only one (device), or the operator takes it in any shape."""
    given, valid = VALID[operator].arguments("cpu"), VALID[operator]
    for argument in schema_of(operator):
        value = given.get(argument.name)
        if not isinstance(value, Tensor):
            continue
        wrong = {w for w, _ in mutations(operator, argument, value, "cpu") if not is_right(valid, argument.name, w)}
        assert wrong & set(map(short, DTYPES)), argument.name
        assert wrong & set(SHAPES) or valid.shapes[argument.name] is ANY_SHAPE, argument.name
        others = [v for name, v in given.items() if isinstance(v, Tensor) and name != argument.name]
        assert not others or {"on another device", "on meta"} <= wrong, argument.name


@pytest.mark.parametrize("operator", VALID)
def test_a_missing_argument_is_named(operator, device):
    for argument in schema_of(operator):
        if argument.has_default_value():
            continue
        given = VALID[operator].arguments(device)
        del given[argument.name]
        with pytest.raises((RuntimeError, TypeError), match=rf"\b{argument.name}\b"):
            operator_of(operator)(**given)


@pytest.mark.parametrize("name", ["momentum", "lars", "rmsprop", "adagrad", "lion"])
def test_one_state_needs_no_second(name, device):
    ops.optimizer_update_8bit_blockwise(**optimizer_8bit(name)(device))


@pytest.mark.parametrize("name", reference.OPTIMIZERS)
def test_an_unknown_name_lists_the_known(name, device, capfd):
    given = {**optimizer_32bit(device), "optimizer_name": "adamax"}
    check_error(lambda: ops.optimizer_update_32bit(**given), "optimizer_name", name, capfd)

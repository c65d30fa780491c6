"""Our operators, and the plain torch reference, against what upstream's CUDA kernels returned."""

import pathlib
import re

import pytest
import torch
import vectors
from helpers import exactly_equal, ops

from bitsandbytes_intel import reference

CODEBOOK = pathlib.Path(__file__).parents[1] / "csrc" / "codebook.h"
IMPLEMENTATIONS = ("operator", "reference")
NESTED = ("absmax_8bit", "absmax_code", "absmax_offset")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, device):
    """What to call, and the device of its arguments."""
    return (ops, device) if request.param == "operator" else (reference, "cpu")


@pytest.mark.parametrize("name", vectors.names("quantize_4bit"))
def test_dequantize_4bit_is_bit_exact(name, implementation, reference_vectors):
    call, where = implementation
    case = reference_vectors.cases[name]
    t, a = case.to(where), case.arguments
    n = case.tensors["A"].numel()
    result = call.dequantize_4bit(t("q"), t("absmax"), a["blocksize"], a["quant_type"], [n], case.dtype)
    exactly_equal(result, case.tensors["dequantized"])


@pytest.mark.parametrize("name", vectors.names("quantize_blockwise"))
def test_dequantize_blockwise_is_bit_exact(name, implementation, reference_vectors):
    call, where = implementation
    case = reference_vectors.cases[name]
    t = case.to(where)
    result = call.dequantize_blockwise(t("q"), t("absmax"), t("code"), case.arguments["blocksize"], case.dtype)
    exactly_equal(result, case.tensors["dequantized"])


@pytest.mark.parametrize("name", vectors.names("gemm_4bit"))
def test_gemm_4bit_is_as_close_as_cuda(name, implementation, reference_vectors):
    """Against the fp64 product of the weight as CUDA dequantises it: no worse than CUDA's own error and a rounding."""
    call, where = implementation
    case = reference_vectors.cases[name]
    t, a = case.to(where), case.arguments
    nested = {key: t(key) for key in NESTED if key in case.tensors}
    arguments = (t("B"), [a["N"], a["K"]], t("absmax"), a["blocksize"], a["quant_type"], t("bias"))
    result = call.gemm_4bit(t("A"), *arguments, **nested).cpu()
    assert result.dtype == case.dtype
    assert result.shape == (a["M"], a["N"])
    vectors.check_against_cuda(result, case)


@pytest.mark.parametrize(
    "name", [name for name in vectors.names("gemm_4bit") if "/m1n" in name and "/nested" not in name]
)
def test_gemv_4bit_is_as_close_as_cuda(name, implementation, reference_vectors):
    call, where = implementation
    case = reference_vectors.cases[name]
    t, a = case.to(where), case.arguments
    code = reference.codebook(a["quant_type"]).to(where)
    result = call.gemv_4bit(t("A"), t("B"), [a["N"], a["K"]], t("absmax"), code, a["blocksize"]).cpu()
    if "bias" in case.tensors:
        result = (result.double() + case.tensors["bias"].double()).to(case.dtype)
    vectors.check_against_cuda(result, case)


@pytest.mark.parametrize("name", vectors.names("int8"))
def test_int8_linear_matmul_is_exact(name, implementation, reference_vectors):
    call, where = implementation
    case = reference_vectors.cases[name]
    t = case.to(where)
    exactly_equal(call.int8_linear_matmul(t("CA"), t("CB")), case.tensors["acc"])


# ---- the reference alone: what our operators do not do yet ----------------------------------------------------------
@pytest.mark.parametrize("name", vectors.names("quantize_4bit"))
def test_reference_quantizes_4bit_as_cuda_does(name, reference_vectors):
    case = reference_vectors.cases[name]
    a, t = case.arguments, case.tensors
    packed, absmax = reference.quantize_4bit(t["A"], a["blocksize"], a["quant_type"], torch.uint8)
    exactly_equal(packed, t["q"])
    exactly_equal(absmax, t["absmax"])


@pytest.mark.parametrize("name", vectors.names("quantize_blockwise"))
def test_reference_quantizes_blockwise_as_cuda_does(name, reference_vectors):
    case = reference_vectors.cases[name]
    t = case.tensors
    codes, absmax = reference.quantize_blockwise(t["A"], t["code"], case.arguments["blocksize"])
    exactly_equal(codes, t["q"])
    exactly_equal(absmax, t["absmax"])


@pytest.mark.parametrize("name", vectors.names("int8"))
def test_reference_int8_operators_are_as_cuda(name, reference_vectors):
    case = reference_vectors.cases[name]
    t, threshold = case.tensors, case.arguments["threshold"]
    columns = t.get("outlier_cols")
    codes, absmax, outliers = reference.int8_vectorwise_quant(t["A"], threshold)
    exactly_equal(codes, t["CA"])
    torch.testing.assert_close(absmax, t["SCA"], rtol=1e-6, atol=0)
    assert (outliers is None) == (columns is None)
    if columns is not None:
        assert outliers.tolist() == sorted(columns.tolist())
    scaled = reference.int8_scaled_mm(t["CA"], t["CB"], t["SCA"], t["SCB"], bias=t["bias"], dtype=torch.float16)
    torch.testing.assert_close(scaled, t["scaled_mm"], rtol=2e-3, atol=2e-3)
    dequantized = reference.int8_mm_dequant(t["acc"], t["SCA"], t["SCB"], torch.float16, t["bias"])
    torch.testing.assert_close(dequantized, t["mm_dequant"], rtol=2e-3, atol=2e-3)
    mixed, _ = reference.int8_mixed_scaled_mm(t["A"], t["CA"], t["CB"], t["SCA"], t["SCB"], columns, t["bias"])
    torch.testing.assert_close(mixed, t["mixed"], rtol=4e-3, atol=2e-2)
    by_row, by_column, row_stats, col_stats, _ = reference.int8_double_quant(t["A"], threshold)
    exactly_equal(by_row, t["dq_row"])
    exactly_equal(by_column, t["dq_col"])
    torch.testing.assert_close(row_stats, t["dq_row_stats"], rtol=1e-6, atol=0)
    torch.testing.assert_close(col_stats, t["dq_col_stats"], rtol=1e-6, atol=0)


@pytest.mark.skipif(not CODEBOOK.exists(), reason="the tests are not run from the source tree")
@pytest.mark.parametrize("quant_type", reference.QUANT_TYPES)
def test_kernels_have_bitsandbytes_own_codebook(quant_type):
    table = re.search(rf"k{quant_type.upper()}\[16\] = {{(.*?)}}", CODEBOOK.read_text(), re.DOTALL).group(1)
    ours = torch.tensor([float(value.rstrip("f")) for value in table.replace("\n", " ").split(",") if value.strip()])
    exactly_equal(ours, reference.codebook(quant_type))

"""What torch wants of every operator of ours: a true schema, and fake tensors and autograd that agree with it.

The cases are those of ``python -m bitsandbytes_intel``: an operator that has none fails here too.
"""

import pytest
import torch
from helpers import check_operator

from bitsandbytes_intel import ops
from bitsandbytes_intel.cli import cases, validation


@pytest.mark.parametrize("operator", [operator.name for operator in ops.OPERATORS])
def test_opcheck(operator, device):
    name, _, overload = operator.partition(".")
    known = cases.of(operator)
    assert known
    for case in known:
        kwargs = validation._copied(case, device)
        if overload == "out":
            (shape,) = (result.shape for result in validation._exact(operator, case).values())
            kwargs["out"] = torch.empty(shape, dtype=case.dtype, device=device)
        check_operator(getattr(getattr(torch.ops.bitsandbytes, name), overload or "default"), (), kwargs)

"""torch.compile of whole 4-bit and 8-bit models, without a graph break."""

from __future__ import annotations

import pytest
import torch
from programs import four_bit, ids, load, relative_error


@pytest.fixture(autouse=True)
def _reset(quiet):
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# The virtual XPU has no Inductor, which wants Triton on a GPU.
@pytest.mark.parametrize(("device", "backend"), [("cpu", "inductor"), ("xpu", "aot_eager")], ids=["cpu", "xpu"])
@pytest.mark.parametrize("how", [four_bit(), {"load_in_8bit": True, "llm_int8_threshold": 2.0}], ids=["nf4", "int8"])
def test_a_compiled_model(folder, how, device, backend):
    model = load(folder, device, **how)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for tokens in (ids(2, 12), ids(2, 7)):  # the second with sizes that are symbols
            tokens = tokens.to(device)
            expected = model(input_ids=tokens, use_cache=False).logits
            result = compiled(input_ids=tokens, use_cache=False).logits
            # A last bit of an activation may fall to the next of 255 codes.
            assert relative_error(result, expected) < (1e-5 if "load_in_4bit" in how else 0.01)

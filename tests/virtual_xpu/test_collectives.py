"""torch.distributed on the virtual XPU, in a group of one process; tests/test_distributed.py has two."""

import pytest
import torch
import torch.distributed as dist

from bitsandbytes_intel import virtual_xpu


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_collectives_of_one_process(group):
    x = torch.arange(6.0, device="xpu") + 1
    expected = x.cpu()
    for call in (dist.all_reduce, lambda t: dist.broadcast(t, 0), lambda t: dist.reduce(t, 0)):
        call(x)
        assert torch.equal(x.cpu(), expected)
    work = dist.all_reduce(x * 2, async_op=True)
    work.wait()
    lists = [torch.zeros(6, device="xpu")]
    dist.all_gather(lists, x)
    gathered, scattered = torch.zeros(6, device="xpu"), torch.zeros(6, device="xpu")
    dist.all_gather_into_tensor(gathered, x)
    dist.all_to_all_single(scattered, x)
    received = torch.zeros(6, device="xpu")
    dist.scatter(received, [x], 0)
    for result in (lists[0], gathered, scattered, received):
        assert result.device.type == "xpu"
        assert torch.equal(result.cpu(), expected)
    counts = virtual_xpu.fallback_counts()
    assert counts["c10d::allreduce_"] == 2
    assert counts["c10d::allgather_"] == 1


def test_send_is_refused(group):
    with pytest.raises(NotImplementedError, match="c10d::send"):
        dist.send(torch.ones(1, device="xpu"), 1)

"""How products are computed while a run trains."""

from __future__ import annotations

import pytest
import torch

from ppo1_lightning.commands.arithmetic import matmul_precision


@pytest.mark.parametrize(("precision", "tf32"), [("highest", False), ("high", True)])
def test_convolutions_are_as_precise_as_products(precision: str, tf32: bool):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with matmul_precision(precision):
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32 is tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before

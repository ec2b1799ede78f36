"""The CNNs of ``ppo1/cnn_policy.py`` and ``nosharing_cnn_policy.py``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces
from torch import nn

from ppo1_lightning import CnnPolicy, ConfigurationError

FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
FRAMES_LAST = spaces.Box(0, 255, (84, 84, 4), np.uint8)
ACTIONS = spaces.Discrete(6)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("size", "shared", "trunk"),
    [
        ("small", True, [(16, 4, 8, 8), (32, 16, 4, 4), (256, 9 * 9 * 32)]),
        ("large", True, [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 7 * 7 * 64)]),
        ("tiny", False, [(8, 4, 8, 8), (16, 8, 4, 4), (128, 9 * 9 * 16)]),
    ],
)
def test_weight_shapes_of_the_original(size: str, shared: bool, trunk: list[tuple[int, ...]]):
    policy = CnnPolicy(FRAMES, ACTIONS, size=size, shared_trunk=shared)
    features = trunk[-1][0]
    expected = trunk * (1 if shared else 2) + [(6, features), (1, features)]
    parameters = list(policy.parameters())
    assert sorted(tuple(p.shape) for p in parameters if p.dim() > 1) == sorted(expected)
    assert sorted(p.numel() for p in parameters if p.dim() == 1) == sorted(s[0] for s in expected)


def test_initialisation():
    policy = CnnPolicy(FRAMES, ACTIONS)
    for name, module in policy.named_modules():
        if isinstance(module, nn.Linear):
            norms = module.weight.norm(dim=1)
            expected = 0.01 if name == "action_head" else 1.0
            torch.testing.assert_close(norms, torch.full_like(norms, expected))
        elif isinstance(module, nn.Conv2d):
            outputs, inputs, height, width = module.weight.shape
            bound = math.sqrt(6 / (height * width * (inputs + outputs)))
            assert 0.97 * bound < module.weight.abs().max() <= bound
            torch.testing.assert_close(
                module.weight.std().item(), bound / math.sqrt(3), rtol=0.05, atol=0
            )
        else:
            continue
        assert (module.bias == 0).all()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("shared", [True, False])
def test_orthogonal_initialisation(shared: bool):
    """Rows of each layer of the trunks are orthogonal, of norm √2; the heads stay as they are."""
    policy = CnnPolicy(FRAMES, ACTIONS, shared_trunk=shared, initialization="orthogonal")
    layers = [m for m in policy.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == (5 if shared else 8)
    for layer in layers:
        rows = layer.weight.flatten(1)
        norm = {6: None, 1: 1.0}.get(len(rows), math.sqrt(2))  # of the action head: 0.01 each
        if norm is not None:
            torch.testing.assert_close(rows @ rows.T, norm**2 * torch.eye(len(rows)))
        assert layer.bias is not None
        assert (layer.bias == 0).all()
    with pytest.raises(ConfigurationError, match=r"policy.initialization='orth'.*'orthogonal'"):
        CnnPolicy(FRAMES, ACTIONS, initialization="orth")


@pytest.mark.parametrize("size", ["small", "large", "tiny"])
def test_channels_first_and_last_give_the_same(size: str):
    first = CnnPolicy(FRAMES, ACTIONS, size=size)
    last = CnnPolicy(FRAMES_LAST, ACTIONS, size=size)
    last.load_state_dict(first.state_dict())
    batch = images(3, 84, 84, 4)
    ours, theirs = last(batch, None), first(batch.permute(0, 3, 1, 2).contiguous(), None)
    torch.testing.assert_close(ours, theirs)


def test_uint8_images_are_divided_by_255_and_flattened_height_width_channels():
    """Against NumPy in TensorFlow's layout: images NHWC, kernels HWIO, dense [in, out]."""
    space = spaces.Box(0, 255, (44, 36, 3), np.uint8)  # not square: a swapped axis would show
    policy = CnnPolicy(space, ACTIONS, size="tiny")
    for parameter in policy.parameters():
        nn.init.normal_(parameter, std=0.1)
    batch = images(2, 44, 36, 3)

    h = batch.numpy().astype(float) / 255
    convolutions = [m for m in policy.modules() if isinstance(m, nn.Conv2d)]
    for layer, stride in zip(convolutions, (4, 2), strict=True):
        assert layer.bias is not None
        kernel = layer.weight.detach().permute(2, 3, 1, 0).numpy()
        h = np.maximum(_valid_convolution(h, kernel, stride) + layer.bias.detach().numpy(), 0)
    dense = next(m for m in policy.trunk.modules() if isinstance(m, nn.Linear))
    h = np.maximum(_affine(h.reshape(2, -1), dense), 0)

    parameters, values, _ = policy(batch, None)
    np.testing.assert_allclose(
        parameters.detach(), _affine(h, policy.action_head), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        values.detach(), _affine(h, policy.value_head)[:, 0], rtol=1e-4, atol=1e-6
    )


def _affine(x: Any, layer: nn.Linear) -> Any:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def _valid_convolution(image: Any, kernel: Any, stride: int) -> Any:
    """Convolve ``[B, H, W, I]`` with ``[h, w, I, O]`` without padding, one output at a time."""
    height, width = kernel.shape[:2]
    rows = range(0, image.shape[1] - height + 1, stride)
    columns = range(0, image.shape[2] - width + 1, stride)
    result = [
        [np.tensordot(image[:, y : y + height, x : x + width], kernel, axes=3) for x in columns]
        for y in rows
    ]
    return np.array(result).transpose(2, 0, 1, 3)


def test_float_images_are_not_divided():
    space = spaces.Box(0, 1, (4, 84, 84), np.float32)
    of_floats, of_bytes = CnnPolicy(space, ACTIONS), CnnPolicy(FRAMES, ACTIONS)
    of_floats.load_state_dict(of_bytes.state_dict())
    batch = images(2, 4, 84, 84)
    torch.testing.assert_close(of_floats(batch / 255, None), of_bytes(batch, None))


@pytest.mark.parametrize("shared", [False, True])
def test_separate_and_shared_trunks(shared: bool):
    policy = CnnPolicy(FRAMES, ACTIONS, size="tiny", shared_trunk=shared)
    policy(images(2, 4, 84, 84), None).values.sum().backward()
    assert policy.action_head.weight.grad is None
    reached = [p.grad is not None for p in policy.trunk.parameters()]
    assert reached == [shared] * len(reached)


@pytest.mark.parametrize(
    ("action_space", "num_parameters"),
    [(spaces.Box(-1, 1, (3,)), 6), (ACTIONS, 6), (spaces.MultiBinary(4), 4)],
    ids=["Box", "Discrete", "MultiBinary"],
)
def test_outputs(action_space: Space[Any], num_parameters: int):
    parameters, values, _ = CnnPolicy(FRAMES, action_space, size="tiny")(images(2, 4, 84, 84), None)
    assert parameters.shape == (2, num_parameters)
    assert values.shape == (2,)


def test_arguments_rebuild_the_policy():
    policy = CnnPolicy(FRAMES, ACTIONS, size="tiny", shared_trunk=False)
    assert policy.arguments == {"size": "tiny", "shared_trunk": False}
    CnnPolicy(FRAMES, ACTIONS, **policy.arguments).load_state_dict(policy.state_dict())


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (spaces.Box(-1, 1, (8,)), {}, "vectors need policy=mlp"),
        # Bounds that differ print as an array, on several lines when it is long.
        (spaces.Box(-np.arange(1, 31, dtype=np.float32), np.inf), {}, "vectors need policy=mlp"),
        (spaces.Discrete(5), {}, "expected images"),
        (spaces.Box(0, 255, (3, 16, 16), np.uint8), {}, "16 x 16 are too small"),
        (FRAMES, {"size": "larg"}, "did you mean 'large'"),
    ],
    ids=["vector", "long vector", "discrete", "small images", "size"],
)
def test_errors_are_one_line(space: Space[Any], options: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message) as error:
        CnnPolicy(space, ACTIONS, **options)
    assert "\n" not in str(error.value)


def test_a_vector_joins_what_the_convolutions_make_of_the_image():
    space = spaces.Dict(
        [("vector", spaces.Box(-1, 1, (3,))), ("image", spaces.Box(0, 255, (40, 48, 3), np.uint8))]
    )
    both = CnnPolicy(space, ACTIONS, shared_trunk=False)
    alone = CnnPolicy(space["image"], ACTIONS, shared_trunk=False)
    assert both.observation_normalizer is not None
    weights = both.state_dict()
    for name in ("trunk", "value_trunk"):
        weight = weights[f"{name}.linear.weight"]
        assert weight.shape[1] == 3 + alone.state_dict()[f"{name}.linear.weight"].shape[1]
        weight[:, -3:] = 0  # the vector's, which comes last
    both.load_state_dict(weights)
    image, vector = images(50, 40, 48, 3), torch.randn(50, 3)
    rows = torch.cat([vector, image.flatten(1).float()], 1)
    kept = {k: v for k, v in weights.items() if not k.startswith("observation_normalizer")}
    for name in ("trunk", "value_trunk"):
        kept[f"{name}.linear.weight"] = kept[f"{name}.linear.weight"][:, :-3]
    alone.load_state_dict(kept)
    torch.testing.assert_close(both(rows)[:2], alone(image)[:2])
    # the statistics are those of the vector alone
    both.observation_normalizer.update(rows)
    scores = (vector - vector.mean(0)) / vector.std(0, correction=0)
    torch.testing.assert_close(both.preprocess(rows)[1], scores, atol=0.05, rtol=0)


def test_a_vector_alone_is_no_image():
    space = spaces.Dict(
        [("vector", spaces.Box(-1, 1, (3,))), ("action_mask", spaces.Box(0, 1, (6,)))]
    )
    with pytest.raises(ConfigurationError, match="vectors need policy=mlp"):
        CnnPolicy(space, ACTIONS)

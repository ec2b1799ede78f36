"""Masks that are joint, nested, in info or all false, and actions rescaled to their bounds."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from ppo1_lightning.errors import ConfigurationError, SimulationError
from ppo1_lightning.policies.spaces import describe, restore
from ppo1_lightning.simulators import EnvironmentSpec, make_simulator, spaces
from ppo1_lightning.simulators.observations import ObservationAdapter


class Masked(gymnasium.Env[Any, Any]):
    """Shows the masks that it is told, one a step, and remembers its last action."""

    def __init__(self, action: Any, masks: list[Any], length: int = 100) -> None:
        self.action_space, self._masks, self._length = action, masks, length
        mask = MultiBinary(np.shape(masks[0]))
        self.observation_space = Dict(seen=Box(-1, 1, (2,)), inner=Dict(action_mask=mask))

    def _observation(self) -> Any:
        mask = np.asarray(self._masks[min(self.t, len(self._masks) - 1)], np.int8)
        return {"seen": np.zeros(2, np.float32), "inner": {"action_mask": mask}}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        self.last = np.array(action)
        return self._observation(), 1.0, self.t >= self._length, False, {}


class Bounded(gymnasium.Env[Any, Any]):
    """Remembers its last action."""

    observation_space = Box(-1, 1, (2,))

    def __init__(self, action: Any) -> None:
        self.action_space = action

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.last = np.array(action)
        return np.zeros(2, np.float32), 1.0, False, False, {}


gymnasium.register("Masked-v0", Masked)  # type: ignore[arg-type]
gymnasium.register("Bounded-v0", Bounded)  # type: ignore[arg-type]


def simulator_of(env_id: str, num_envs: int = 1, **options: Any) -> Any:
    names = ("rescale_actions", "clip_actions")
    fields = {name: options.pop(name, False) for name in names}
    spec = EnvironmentSpec(env_id, options=options, **fields)
    simulator = make_simulator(spec, [*range(num_envs)])
    simulator.reset()
    return simulator


def last_of(simulator: Any) -> Any:
    return simulator._pools[0].envs[0].unwrapped.last


def test_a_mask_of_combinations_makes_them_one_choice() -> None:
    """Choice i is the i-th combination in the order of the mask's numbers, as NumPy unravels it."""
    mask = np.ones((2, 3, 2))
    simulator = simulator_of("Masked-v0", action=MultiDiscrete([2, 3, 2]), masks=[mask])
    assert simulator.action_space == Discrete(12)
    assert simulator.observation_space["action_mask"].shape == (12,)
    for choice in range(12):
        simulator.step(np.array([choice]))
        np.testing.assert_array_equal(last_of(simulator), np.unravel_index(choice, (2, 3, 2)))


def test_a_mask_of_each_number_s_values_leaves_the_space() -> None:
    simulator = simulator_of("Masked-v0", action=MultiDiscrete([2, 3]), masks=[np.ones(5)])
    assert simulator.action_space == MultiDiscrete([2, 3])


@pytest.mark.parametrize(
    ("counts", "shape", "ours"),
    [
        ([2, 2], (4,), MultiDiscrete([2, 2])),
        ([1, 2, 3], (6,), MultiDiscrete([1, 2, 3])),
        ([1, 2, 3], (1, 2, 3), Discrete(6)),
        ([3, 3], (3, 3), Discrete(9)),
        ([3, 3], (2, 3), MultiDiscrete([3, 3])),
    ],
)
def test_where_combinations_are_as_many_as_values_the_shape_tells(
    counts: list[int], shape: tuple[int, ...], ours: Any
) -> None:
    simulator = simulator_of("Masked-v0", action=MultiDiscrete(counts), masks=[np.ones(shape)])
    assert simulator.action_space == ours


@pytest.mark.parametrize("keys", [None, ["action_mask.1", "seen", "action_mask.0"]])
def test_a_tuple_of_masks_is_one_mask(keys: Any) -> None:
    """As `MultiDiscrete.sample` takes them, in the order of the action's numbers."""
    masks = Tuple([MultiBinary(2), Box(0, 1, (3,), np.int8)])
    space = Dict(seen=Box(-1, 1, (2,)), action_mask=masks)
    adapter = ObservationAdapter(EnvironmentSpec("Masked-v0", observation_keys=keys), space)
    assert adapter.mask == slice(2, 7)
    assert adapter.mask_shape == (5,)
    shown = np.array([[0, 1]], np.int8), np.array([[1, 0, 1]], np.int8)
    row = np.empty((1, 7), np.float32)
    adapter({"seen": np.zeros((1, 2)), "action_mask": shown}, row)
    assert row[0, 2:].tolist() == [0, 1, 1, 0, 1]


def test_a_dict_of_masks_is_none() -> None:
    """Its keys are sorted as words, and are no order of an action's numbers."""
    masks = Dict({str(i): MultiBinary(2) for i in range(12)})
    adapter = ObservationAdapter(EnvironmentSpec("Masked-v0"), Dict(action_mask=masks))
    assert adapter.mask is None
    assert "action_mask.11" in adapter.no_masks


@pytest.mark.parametrize("place", [Tuple, lambda both: Dict(a=both[0], b=both[1])])
def test_masks_of_several_players_are_refused(place: Any) -> None:
    one = Dict(action_mask=MultiBinary(3))
    with pytest.raises(ConfigurationError, match=r"observes the masks .* expected one"):
        ObservationAdapter(EnvironmentSpec("Masked-v0"), Dict(action_masks=place([one, one])))


@pytest.mark.parametrize(
    ("space_of_mask", "mask"),
    [
        (Box(-np.inf, 0, (3,)), [0, -1e9, 0]),
        (Box(0, 1, (3,)), [0, 0.5, 1]),
        (Box(0, 1, (3,), np.int8), [1, 0, 2]),  # out of the space that it is said to be of
        (Box(0, 1, (3,), np.int64), [-128, 0, -128]),
        (MultiBinary(3), [1, 0, 2]),
    ],
)
def test_a_mask_of_other_numbers_than_0_and_1_is_refused(space_of_mask: Any, mask: Any) -> None:
    """Such as one that is to be added to the logits, which would be read the wrong way round."""
    space = Dict(seen=Box(-1, 1, (2,)), action_mask=space_of_mask)
    adapter = ObservationAdapter(EnvironmentSpec("Masked-v0"), space)
    shown = {"seen": np.zeros((1, 2)), "action_mask": np.array([mask], space_of_mask.dtype)}
    with pytest.raises(SimulationError, match="expected 1 for what is allowed, else 0"):
        adapter(shown, np.empty((1, 5), np.float32))


def test_where_neither_tells_it_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"may be of combinations or of .*Discrete\(4\)"):
        simulator_of("Masked-v0", action=MultiDiscrete([2, 2]), masks=[np.ones((2, 2))])


@pytest.mark.parametrize(
    ("action", "stuck"),
    [
        (Discrete(3), [0, 0, 0]),
        (MultiDiscrete([2, 3]), [1, 1, 0, 0, 0]),
        (MultiDiscrete([2, 3]), [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_a_mask_that_allows_nothing_ends_in_one_line(action: Any, stuck: Any) -> None:
    simulator = simulator_of("Masked-v0", action=action, masks=[np.ones_like(stuck), stuck])
    with pytest.raises(SimulationError, match=r"^environment 0 .*_mask that allows nothing, exp"):
        simulator.step(np.zeros((1, *simulator.action_space.shape), np.int64))


def test_nothing_is_allowed_after_the_end_of_an_episode() -> None:
    masks = [[1, 1], [0, 0]]
    simulator = simulator_of("Masked-v0", action=Discrete(2), masks=masks, length=1)
    assert simulator.step(np.array([0])).terminated.all()
    assert not simulator.step(np.array([0])).valid.any()


def test_envpool_s_masks_in_info_are_observed() -> None:
    simulator = make_simulator(EnvironmentSpec("Play2048-v1", "envpool"), [0, 1])
    rows = simulator.reset()
    assert simulator.observation_space["action_mask"].shape == (4,)  # type: ignore[index]
    assert set(np.unique(rows[:, -4:])) <= {0, 1}
    assert rows[:, -4:].any(1).all()


@pytest.mark.parametrize(("clips", "received"), [(False, [5.0, -20, 7]), (True, [3.0, 0, 7])])
def test_minus_one_and_one_stand_for_the_bounds(clips: bool, received: list[float]) -> None:
    """A number without one of its bounds stays as it is."""
    low, high = np.array([-1, 0, -np.inf]), np.array([3, 40, 9])
    space = Box(low, high, dtype=np.float64)
    simulator = simulator_of("Bounded-v0", action=space, rescale_actions=True, clip_actions=clips)
    np.testing.assert_array_equal(simulator.action_space.low, [-1, -1, -np.inf])
    np.testing.assert_array_equal(simulator.action_space.high, [1, 1, 9])
    for action, expected in [
        ([-1, -1, 0], [-1, 0, 0]),
        ([1, 1, 9], [3, 40, 9]),
        ([0, 0.5, -2], [1, 30, -2]),
        ([2, -2, 7], received),
    ]:
        simulator.step(np.array([action], np.float32))
        np.testing.assert_allclose(last_of(simulator), expected, rtol=1e-6)


def test_bounds_that_are_hardly_meant_are_none() -> None:
    space = Box(np.array([-1e10, -3]), np.array([1e10, 3]), dtype=np.float64)
    simulator = simulator_of("Bounded-v0", action=space, rescale_actions=True)
    simulator.step(np.array([[2, 1]], np.float32))
    np.testing.assert_allclose(last_of(simulator), [2, 3])


def test_a_rescaled_space_is_told_from_a_plain_one() -> None:
    """A checkpoint of one must not go on as the other."""
    described = [
        describe(spaces(EnvironmentSpec("Pendulum-v1", rescale_actions=rescales))[1])
        for rescales in (False, True)
    ]
    assert described[0] != described[1]
    assert [describe(restore(entry)) for entry in described] == described


def test_bounds_of_one_are_left_alone() -> None:
    spec = EnvironmentSpec("HalfCheetah-v4", rescale_actions=True)
    assert spaces(spec)[1] == spaces(EnvironmentSpec("HalfCheetah-v4"))[1]

"""Signs that a run learns nothing, each told once, in a line."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, Trainer

from ppo1_lightning.functional.distributions import DiagonalGaussian

log = logging.getLogger("ppo1_lightning")

PAGE = "docs/faq.md, When a run looks dead"

ROWS = 10
"""Rows of metrics in succession that show a sign, at least."""

SHARE = 0.2
"""Share of the budget that a sign lasts, at least: early on, good runs show some of them too."""

LONG_EPISODE = 30_000
"""Steps: more than the time limits of EnvPool's and Gymnasium's environments."""

SHORT_RUN = 1000
"""Steps of each environment, the commonest time limit: of fewer nobody expects an episode's end."""


NO_DEVIATION = 5.0
"""Nats by which the entropy of one action falls as its deviation falls to less than a hundredth."""


@dataclass
class Row:
    """What is known of a run after an iteration.

    Attributes:
        metrics: as the loggers get them.
        first: of each the first that was a number.
        share: of the budget that is spent, in [0, 1]; NaN where it is not known.
        steps: of each environment.
        returns: of the last episodes.
        worst: the lowest return of all.
        deviations: that the policy has for its actions, 0 where they are choices.
        was_resumed: the run's beginning is not known.
    """

    metrics: dict[str, float]
    first: dict[str, float]
    share: float
    steps: float
    returns: list[float]
    worst: float
    deviations: int
    was_resumed: bool = False

    @property
    def has_improved(self) -> bool:
        """Whether returns are better than at first, by a tenth of what they were.

        Of a run that was resumed, whose beginning is not known, it is taken for granted.
        """
        first, now = (m.get("episode_return_mean", math.nan) for m in (self.first, self.metrics))
        return self.was_resumed or now > first + 0.1 * abs(first)

    @property
    def has_no_entropy(self) -> bool:
        """Whether the policy has become one that always does the same."""
        entropy, first = (m.get("entropy", math.nan) for m in (self.metrics, self.first))
        if self.deviations:
            return entropy < first - NO_DEVIATION * self.deviations
        return entropy < 0.01 * first


@dataclass(frozen=True)
class Sign:
    """A sign of a dead run.

    Attributes:
        is_there: whether a row shows it.
        told: what it is and what to try.
    """

    is_there: Callable[[Row], bool]
    told: str


def _never_ends(row: Row) -> bool:
    long = row.steps > LONG_EPISODE or (row.share > 0.5 and row.steps > SHORT_RUN)
    return not row.metrics["episodes"] and long


def _is_at_its_worst(row: Row) -> bool:
    few = len(row.returns) < 50
    return not few and max(row.returns) == min(row.returns) == row.worst and not row.has_improved


def _explains_nothing(row: Row) -> bool:
    is_known = not math.isnan(row.metrics.get("episode_return_mean", math.nan))
    below = row.metrics.get("explained_variance", 0.0) < 0
    return below and is_known and not row.has_improved


def _does_not_move(row: Row) -> bool:
    rate, first = (m.get("learning_rate", math.nan) for m in (row.metrics, row.first))
    is_done = rate < 0.1 * first or (row.has_no_entropy and row.has_improved)
    return row.metrics.get("kl", 1.0) < 1e-9 and not is_done


def _has_no_entropy(row: Row) -> bool:
    return row.has_no_entropy and not row.has_improved


SIGNS = {
    "episodes": Sign(
        _never_ends,
        "no episode has ended so far: give the environment a time limit, such as "
        "+env.options.max_episode_steps=1000",
    ),
    "returns": Sign(
        _is_at_its_worst,
        "all episodes return the same, the least of all: nothing is found to learn from; try "
        "algo.ent_coef=0.01, more environments, a longer total_steps or another reward",
    ),
    "explained_variance": Sign(
        _explains_nothing,
        "values predict the returns worse than their mean does (explained_variance below 0): try "
        "algo.normalize_returns=true or a smaller algo.learning_rate",
    ),
    "kl": Sign(
        _does_not_move,
        "the policy does not change (kl is 0): is it frozen, or algo.learning_rate 0?",
    ),
    "entropy": Sign(
        _has_no_entropy,
        "the policy always does the same (no entropy is left) and is no better than at first: try "
        "a smaller algo.learning_rate or algo.ent_coef=0.01",
    ),
}
"""By the metric that shows it."""


class HealthCheck(Callback):
    """Warns of a run that looks dead: which sign, what to try, and where to read on.

    A sign is told once, when `ROWS` rows and a share of `SHARE` of the budget in succession show
    it; that no episode has ended, at once. Of a run that was resumed only what needs no look at
    its beginning is told.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, float] = {}
        self._worst = math.inf
        self._seen = -1.0  # iteration of the last row
        self._since: dict[str, tuple[int, float]] = {}  # rows, and the share at the first
        self._told: set[str] = set()
        self._was_resumed = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Note whether this is the run's beginning."""
        self._was_resumed = pl_module.counters.iterations > 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the last row of metrics, if it is new."""
        iteration = pl_module.metrics.get("iteration", -1)
        if iteration == self._seen or not trainer.is_global_zero:
            return
        self._seen = iteration
        row = self._row(trainer, pl_module)
        for name, sign in SIGNS.items():
            self._look_for(name, sign, row)

    def _row(self, trainer: Trainer, module: Any) -> Row:
        numbers = {name: value for name, value in self._first.items() if not math.isnan(value)}
        self._first = {**module.metrics, **numbers}
        distribution, returns = module.distribution, module.episodes.returns
        self._worst = min([self._worst, *returns])
        data: Any = getattr(trainer, "datamodule", None)
        budget = getattr(data, "budget", None)
        return Row(
            metrics=module.metrics,
            first=self._first,
            share=math.nan if budget is None else budget.fraction_spent(module.counters),
            steps=module.counters.env_steps / getattr(data, "num_envs", 1),
            returns=returns,
            worst=self._worst,
            deviations=distribution.size if isinstance(distribution, DiagonalGaussian) else 0,
            was_resumed=self._was_resumed,
        )

    def _look_for(self, name: str, sign: Sign, row: Row) -> None:
        if not sign.is_there(row):
            self._since.pop(name, None)
            return
        rows, share = self._since.get(name, (0, row.share))
        self._since[name] = rows + 1, share
        lasts = rows + 1 >= ROWS and not row.share - share < SHARE
        if (lasts or name == "episodes") and name not in self._told:
            self._told.add(name)
            log.warning("the run looks dead: %s (%s)", sign.told, PAGE)

"""Final scores of groups: interquartile means with intervals, and what to keep in mind of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppo1_lightning.runs.report.groups import Group, scales_of
from ppo1_lightning.runs.report.runs import UNKNOWN_SEED
from ppo1_lightning.runs.report.statistics import (
    Floats,
    bootstrap_interval,
    interquartile_mean,
    probability_of_improvement,
)


@dataclass(frozen=True)
class Score:
    """Final scores of one group on one environment (or on all, scaled)."""

    group: Group
    count: int
    iqm: float
    low: float
    high: float
    mean: float
    std: float
    best: float
    first_higher: float
    """Probability that a run of the first group scores higher; NaN for the first itself."""
    first_higher_low: float
    first_higher_high: float


@dataclass(frozen=True)
class ScoreTable:
    """The scores of one environment, and the axis on which their intervals are drawn."""

    title: str
    note: str
    scores: list[Score]

    def position(self, value: float) -> float:
        """Return where ``value`` is on the axis, in per cent."""
        known = [v for s in self.scores for v in (s.iqm, s.low, s.high) if math.isfinite(v)]
        low, high = min(known, default=0.0), max(known, default=0.0)
        if low == high or not math.isfinite(value):
            return 50.0
        return round(4 + 92 * (value / (high - low) - low / (high - low)), 2)


def score_tables(groups: Sequence[Group], envs: Sequence[str]) -> list[ScoreTable]:
    """Return a table for each environment and, where groups share several, one for all of them."""
    tables = []
    for env in envs:
        strata = [(g, [known]) for g in groups if len(known := _scores(g, env))]
        if strata:
            tables.append(ScoreTable(env, "", _ranked(strata)))
    everywhere = [g for g in groups if all(len(_scores(g, env)) for env in envs)]
    if len(envs) > 1 and len(everywhere) > 1:
        scale = scales_of([run for group in groups for run in group.runs])
        scaled = [(g, [scale[env](_scores(g, env)) for env in envs]) for g in everywhere]
        note = "each environment scaled: 0 is the lowest final score of these runs, 1 the highest"
        tables.insert(0, ScoreTable(f"All {len(envs)} environments", note, _ranked(scaled)))
    return tables


def caveats(groups: Sequence[Group], envs: Sequence[str]) -> list[str]:
    """Return what the scores of these runs should not be taken for, in whole sentences."""
    together = [group.scored(env) for group in groups for env in envs]
    shares = [run.share for runs in together for run in runs]
    sentences = []
    if unfinished := sum(share < 1 for share in shares):
        sentences.append(
            f"Not finished: {unfinished} of {len(shares)} runs, whose last value so far counts."
        )
    if any(len({run.budget for run in runs}) > 1 for runs in together):
        sentences.append("Some runs of one configuration had other budgets than the others.")
    seeds = [[run.seed for run in runs if run.seed != UNKNOWN_SEED] for runs in together]
    if any(len(set(of_group)) < len(of_group) for of_group in seeds):
        sentences.append(
            "Some runs of one configuration have the same seed: they are no repetitions."
        )
    return sentences


def _scores(group: Group, env: str) -> Floats:
    return np.array([run.score for run in group.scored(env)])


def _ranked(scores: Sequence[tuple[Group, list[Floats]]]) -> list[Score]:
    """Return the scores of groups, the best first, for the scores of each on every environment."""
    ranked = sorted(scores, key=lambda own: -interquartile_mean(np.concatenate(own[1])))
    (best, first), *others = ranked
    return [_score(best, first, None), *(_score(group, own, first) for group, own in others)]


def _score(group: Group, strata: list[Floats], first: list[Floats] | None) -> Score:
    scores = np.concatenate(strata)
    low, high = bootstrap_interval(strata)
    nothing = (math.nan,) * 3
    return Score(
        group,
        len(scores),
        float(interquartile_mean(scores)),
        float(low),
        float(high),
        float(scores.mean()),
        float(scores.std(ddof=1)) if len(scores) > 1 else math.nan,
        float(scores.max()),
        *(nothing if first is None else probability_of_improvement(first, strata)),
    )

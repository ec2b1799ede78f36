"""Search hyperparameters: ``python -m ppo1_lightning tune env=cartpole hparams_search=optuna``.

Hydra composes the config of each trial, Optuna chooses and prunes. Hydra's own sweeper for Optuna
needs Optuna 2, never prunes, and counts its trials anew when it goes on with a study.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

try:
    import optuna
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError as error:
    raise SystemExit("error: Optuna is missing: install the extra `sweep`") from error

from ppo1_lightning.callbacks.pruning import ENDED
from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands import ranks as launch
from ppo1_lightning.commands import sweep_report
from ppo1_lightning.commands.train import train
from ppo1_lightning.errors import ConfigurationError, DivergenceError, nearest
from ppo1_lightning.runs import lock

log = logging.getLogger("ppo1_lightning")

_STUDY = {
    *("n_trials", "seeds", "direction", "study_name", "storage", "reports"),
    *("sampler", "pruner", "search_space"),
}
"""What ``hparams_search`` holds."""


def main() -> None:
    """Run the command line."""
    cli.run(tune, "train")


def tune(config: DictConfig) -> float | None:
    """Run trials until the study has ``hparams_search.n_trials`` of them.

    The study is kept in ``hydra.run.dir``: the same command with the same folder goes on with it,
    and repeats the trial in which it was interrupted. A trial's score is the mean of
    ``optimized_metric`` over ``hparams_search.seeds``. At the end a report of all is written.

    Returns:
        The best score, None where every trial was pruned.

    Raises:
        ConfigurationError: no search is chosen, another process works on the study, or anything
            that `train` refuses.
    """
    search = config.get("hparams_search")
    if search is None:
        raise ConfigurationError("there is no search, expected an argument hparams_search=optuna")
    for name in sorted(map(str, search.keys() - _STUDY)):
        raise ConfigurationError(
            f"hparams_search.{name} is nothing that a study has, expected some of "
            f"{', '.join(sorted(_STUDY))}{nearest(name, _STUDY)}; a file of conf/hparams_search "
            "begins with '# @package _global_'"
        )
    if (launch.processes_started() or 1) > 1:
        raise ConfigurationError("a study runs in one process, not below torchrun or srun")
    folder = Path(config.trainer.default_root_dir)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would print tracebacks of mistakes
    lock.hold(folder)
    try:
        study = optuna.create_study(
            storage=search.storage,
            study_name=search.study_name,
            direction=search.direction,
            pruner=instantiate(search.pruner, _convert_="all"),
            load_if_exists=True,
        )
        if search.sampler is not None:  # Optuna's own otherwise
            study.sampler = _sampler(search, len(study.trials))
        _repeat_interrupted(study)
        study.optimize(
            lambda trial: fmean(_scores(trial, search, folder)),
            n_trials=max(0, search.n_trials - len(_finished(study))),
            callbacks=[_tell],
        )
    finally:
        lock.release(folder)
    sweep_report.note(folder)
    return _save_best(study, folder / "best.yaml")


def _sampler(search: DictConfig, trials: int) -> optuna.samplers.BaseSampler:
    """Return the sampler; a seeded one that goes on with a study would repeat its first trials."""
    seed = search.sampler.get("seed")
    own = {} if seed is None else {"seed": seed + trials}
    return instantiate(search.sampler, **own, _convert_="all")


def _repeat_interrupted(study: optuna.Study) -> None:
    """Queue again the trials that ended with the process that ran them.

    It had the study's folder for itself, so what says to be running is not, and no heartbeat has
    to be waited for.
    """
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
        log.info("trial %d was interrupted and is repeated", trial.number)


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _tell(study: optuna.Study, trial: FrozenTrial) -> None:
    score = "pruned" if trial.value is None else f"{trial.value:.2f}"
    log.info("trial %d: %s with %s", trial.number, score, trial.params)


def _scores(trial: Trial, search: DictConfig, folder: Path) -> Iterator[float]:
    """Yield the score of each seed; raise `optuna.TrialPruned` where a run has none of use."""
    space = instantiate(search.search_space, _convert_="all")
    chosen = {name: trial._suggest(name, choices) for name, choices in space.items()}
    for index, seed in enumerate(search.seeds):
        own = folder / f"trial_{trial.number}" / f"seed_{seed}"
        own.mkdir(parents=True, exist_ok=True)
        config = _compose(chosen | {"seed": seed})
        config.trainer.default_root_dir = str(own)
        pruning = {
            "_target_": "ppo1_lightning.callbacks.pruning.Pruning",
            **{key: search[key] for key in ("storage", "study_name", "pruner", "reports")},
            "trial_id": trial._trial_id,
            "metric": config.optimized_metric,
            "first_report": index * search.reports,
        }
        OmegaConf.update(config, "callbacks.pruning", pruning, force_add=True)
        yield _score(trial, config, own / "train.out")


def _score(trial: Trial, config: DictConfig, output: Path) -> float:
    """Train once, in however many processes; their callback notes on the trial how it ended."""
    score = None
    try:
        with output.open("w") as file, contextlib.redirect_stdout(file):
            score = train(config)
    except (DivergenceError, launch.RankError) as error:
        if ENDED not in trial.study.trials[trial.number].user_attrs:
            raise  # a mistake, a bug, a rank that was killed: no trial's fault
        log.warning("trial %d, seed %s failed: %s", trial.number, config.seed, error)
    pruned = ENDED in trial.study.trials[trial.number].user_attrs
    if pruned or score is None or math.isnan(score):
        raise optuna.TrialPruned
    return score


def _compose(chosen: dict[str, object]) -> DictConfig:
    """Compose the config of one run: this command line, and what the trial has chosen."""
    given = OmegaConf.to_container(HydraConfig.get().overrides.task)
    words = [f"{name}={'null' if v is None else v}" for name, v in chosen.items()]
    config = hydra.compose("train", [*given, *words])  # type: ignore[misc]
    config.hparams_search = None
    return config


def _save_best(study: optuna.Study, file: Path) -> float | None:
    finished = _finished(study)
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    log.info("%d trials, %d of them pruned", len(finished), len(finished) - len(complete))
    if not complete:
        return None
    best = study.best_trial
    result = {"score": best.value, "trial": best.number, "overrides": best.params}
    OmegaConf.save(OmegaConf.create(result), file)
    arguments = " ".join(f"{name}={value}" for name, value in best.params.items())
    log.info("best: %.2f by trial %d: %s", best.value, best.number, arguments)
    return best.value

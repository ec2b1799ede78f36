"""Search hyperparameters: ``python -m ppo1_lightning tune env=cartpole hparams_search=optuna``.

Hydra composes the config of each trial, Optuna chooses and prunes. Hydra's own sweeper for Optuna
needs Optuna 2, never prunes, and counts its trials anew when it goes on with a study.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

try:
    import optuna
    from optuna.trial import TrialState
except ImportError as error:
    raise SystemExit("error: Optuna is missing: install the extra `sweep`") from error

from ppo1_lightning.callbacks.pruning import DIVERGED, PRUNED
from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands import ranks as launch
from ppo1_lightning.commands import sweep_report
from ppo1_lightning.commands.train import train
from ppo1_lightning.errors import ConfigurationError, DivergenceError

log = logging.getLogger("ppo1_lightning")


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
    if (launch.processes_started() or 1) > 1:
        raise ConfigurationError("a study runs in one process, not below torchrun or srun")
    folder = Path(config.trainer.default_root_dir)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _only_process(folder):
        study = optuna.create_study(
            storage=search.storage,
            study_name=search.study_name,
            direction=search.direction,
            sampler=instantiate(search.sampler, _convert_="all"),
            pruner=instantiate(search.pruner, _convert_="all"),
            load_if_exists=True,
        )
        _repeat_interrupted(study)
        space = instantiate(search.search_space, _convert_="all")
        while len(_finished(study)) < search.n_trials:
            trial = study.ask(space)
            score = _evaluate(trial, search, folder)
            if score is None:
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, score)
            log.info("trial %d: %s with %s", trial.number, _shown(score), trial.params)
    sweep_report.note(folder)
    return _save_best(study, folder / "best.yaml")


@contextlib.contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    """Hold the study's folder; the system lets go of it however this process ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"another process works on the study in hydra.run.dir={folder}"
            ) from error
        yield


def _repeat_interrupted(study: optuna.Study) -> None:
    """Ask again for the trials that ended with the process that ran them."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
        log.info("trial %d was interrupted and is repeated", trial.number)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _evaluate(trial: optuna.Trial, search: DictConfig, folder: Path) -> float | None:
    """Return the mean score over all seeds, None for a trial that was pruned or diverged."""
    scores: list[float] = []
    for index, seed in enumerate(search.seeds):
        own = folder / f"trial_{trial.number}" / f"seed_{seed}"
        own.mkdir(parents=True, exist_ok=True)
        config = _compose({**trial.params, "seed": seed}, own)
        pruning = {
            "_target_": "ppo1_lightning.callbacks.pruning.Pruning",
            "storage": search.storage,
            "study_name": search.study_name,
            "trial_id": trial._trial_id,
            "pruner": OmegaConf.to_container(search.pruner, resolve=True),
            "metric": config.optimized_metric,
            "reports": search.reports,
            "first_report": index * search.reports,
        }
        OmegaConf.update(config, "callbacks.pruning", pruning, force_add=True)
        try:
            with (own / "train.out").open("w") as file, contextlib.redirect_stdout(file):
                score = train(config)
        except (DivergenceError, launch.RankError) as error:
            if DIVERGED not in trial.study.trials[trial.number].user_attrs:
                raise  # a mistake, a bug, a rank that was killed: no trial's fault
            log.warning("trial %d, seed %s failed: %s", trial.number, seed, error)
            return None
        pruned = PRUNED in trial.study.trials[trial.number].user_attrs
        if pruned or score is None or math.isnan(score):
            return None
        scores.append(score)
    return fmean(scores)


def _compose(chosen: Mapping[str, Any], folder: Path) -> DictConfig:
    """Compose the config of one run: this command line, what the trial has chosen, its folder."""
    given = OmegaConf.to_container(HydraConfig.get().overrides.task)
    words = [f"{name}={'null' if v is None else v}" for name, v in chosen.items()]
    config = hydra.compose("train", [*given, *words])  # type: ignore[misc]
    config.hparams_search = None
    config.trainer.default_root_dir = str(folder)
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
    log.info("best: %s by trial %d: %s", _shown(best.value), best.number, arguments)
    return best.value


def _shown(score: float | None) -> str:
    return "pruned" if score is None else f"{score:.2f}"

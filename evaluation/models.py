"""The models of a run, loaded or fitted, each as something that ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sidrec.baselines import BASELINES
from sidrec.baselines.baseline import Fitted, TrainingPlan
from sidrec.baselines.blend import BLENDS, EXPERTS, MOST_ITEMS, RIVAL_BLENDS, LatestLogProbs, tune_blend
from sidrec.baselines.item_knn import ItemKnn
from sidrec.baselines.memory import Memory
from sidrec.baselines.slit import Slit
from sidrec.baselines.tuning import Tuning
from sidrec.data.dataset import Dataset
from sidrec.decoding.recommender import STAGE_COMMANDS, Recommender
from sidrec.evaluation.ranking import BlendRanker, ListRanker, Ranker, ScoreRanker
from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import seed_runs

MODELS = (*STAGE_COMMANDS, *BLENDS, *RIVAL_BLENDS, *BASELINES)  # in the order of the table's rows


@dataclass
class LoadedModels:
    """rankers: by model, one a repeat (a training with its own seed). generative: the first repeat of those that write semantic IDs.
    tuning: of the models that were tuned. memories: of the blends. cut_short: of trainings that the time limit ended, how many."""

    rankers: dict[str, list[Ranker]] = field(default_factory=dict)
    generative: dict[str, Recommender] = field(default_factory=dict)
    tuning: dict[str, Tuning] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)
    cut_short: dict[str, dict[str, float]] = field(default_factory=dict)


def load_models(dataset: Dataset, config: EvaluateConfig, screen: Screen) -> LoadedModels:
    """The models of --models, fitted on the train part and chosen on valid."""
    valid, plan, n_items = dataset.cases("valid"), training_plan(config), dataset.n_items
    stages = trained_stages(config.models)
    recommenders = {stage: [Recommender.load(run, stage) for run in runs_of(config, stage)] for stage in stages}
    fitted = {name: BASELINES[name].fitted(dataset, valid, plan, screen) for name in needed_baselines(config)}
    memories = {name: memory_of(fitted[name]) for name in config.blend_with if name in fitted}
    loaded, latest = LoadedModels(), LatestLogProbs()
    for name in [
        *(expert for expert in EXPERTS if expert in fitted),
        *fitted,
    ]:  # those that blends are made with come first
        tuning = fitted[name].tuning
        if tuning is not None:
            loaded.tuning[name] = tuning
    for name in config.models:
        if name in BASELINES:
            result = fitted[name]
            loaded.rankers[name] = [ScoreRanker(scorer) for scorer in result.scorers]
            if result.cut_short:
                counts = {"cut": result.cut_short, "trainings": result.trainings}
                loaded.cut_short[name] = counts | {"minutes": config.sasrec_minutes}
        elif name in (*BLENDS, *RIVAL_BLENDS):
            blended = recommenders[BLENDS[name]] if name in BLENDS else fitted[RIVAL_BLENDS[name]].scorers
            blends, loaded.tuning[name] = tune_blend(
                name, blended, list(memories.values()), valid, n_items, config.seed, latest, screen
            )
            loaded.memories[name] = blends[0].memory
            if n_items > MOST_ITEMS:
                loaded.rankers[name] = [ListRanker(blend.searching(), n_items) for blend in blends]
            else:
                loaded.rankers[name] = [BlendRanker(blend) for blend in blends]
        else:
            loaded.generative[name] = recommenders[name][0]
            loaded.rankers[name] = [ListRanker(recommender, n_items) for recommender in recommenders[name]]
    return loaded


def memory_of(fitted: Fitted) -> Memory:
    """The memory of a baseline that blends are made with."""
    baseline = fitted.scorers[0]
    assert isinstance(baseline, ItemKnn | Slit), baseline
    return Memory.of(baseline)


def needed_baselines(config: EvaluateConfig) -> list[str]:
    """The baselines that are measured or blended."""
    rivals = {RIVAL_BLENDS[name] for name in config.models if name in RIVAL_BLENDS}
    blended = set(config.blend_with) if rivals or set(config.models) & set(BLENDS) else set()
    return [name for name in BASELINES if name in blended | rivals | set(config.models)]


def runs_of(config: EvaluateConfig, stage: str) -> list[Path]:
    """The run directories whose models of this stage are measured: the run's own, those of its further seeds, and --other_runs."""
    return [config.run_dir, *seed_runs(config.run_dir, stage), *config.other_runs]


def trained_stages(models: list[str]) -> list[str]:
    """The stages whose models these models are made of."""
    return sorted({BLENDS.get(name, name) for name in models} & set(STAGE_COMMANDS))


def training_plan(config: EvaluateConfig) -> TrainingPlan:
    return TrainingPlan(
        config.run_dir,
        config.sasrec_epochs,
        config.sasrec_minutes,
        config.seed,
        config.seeds,
        config.tune_baselines,
        config.overwrite,
    )

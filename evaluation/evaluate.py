"""Recall@K and NDCG@K of the trained models and of baselines, over the whole catalogue, on the same cases.

sidrec evaluate --run_dir outputs/demo
sidrec evaluate --run_dir outputs/demo --models sft popularity item_knn
sidrec evaluate --run_dir outputs/demo --models sft sasrec esasrec --tune_baselines true --seeds 3
sidrec evaluate --run_dir outputs/demo --models sft sft_blend slit --blend_with item_knn slit
sidrec evaluate --run_dir outputs/ml-100k --value_column rating --liked_from 4

Everything is fitted on the train part and chosen on valid. Test is read once, at the end. An item counts, not a token string:
semantic IDs are unique, so a recommended ID is a recommended item and credit is exact.
"""

from __future__ import annotations

from dataclasses import replace

from sidrec.evaluation.settings import EvaluateConfig
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(EvaluateConfig, arguments, stage="evaluation")
    # torch and polars come with these, and --help does not wait for them
    from sidrec.baselines.blend import memory_file
    from sidrec.data.dataset import Dataset
    from sidrec.evaluation import comparison, model_cards, models, preconditions, ranking, results, table, value_metrics

    screen = Screen("evaluation")
    dataset = Dataset.load(config.run_dir)
    preconditions.check(dataset, config)
    if config.test_cases:
        dataset = replace(dataset, test_sample=(config.test_cases, config.seed))
    decisive, inputs = fingerprint(config, leave_out=config.not_decisive), preconditions.inputs_of(config)
    stage = Stage(config.run_dir, "evaluation", decisive, inputs)
    if config.overwrite or not stage.is_finished():
        screen.begin(f"Recall@K and NDCG@K of {', '.join(config.models)} on the cases of valid, then of test")
        with stage.building(config.overwrite) as folder, screen.logging_to(folder / "log.txt"):
            loaded = models.load_models(dataset, config, screen)
            cases = ranking.measured_cases(dataset, config.valid_cases, config.seed, config.value_column)
            ranked = ranking.rank_all(loaded.rankers, cases, screen)
            metrics = table.summarise(ranked.ranks, config.seed)
            for name, diagnosis in comparison.diagnose_all(loaded.generative, dataset, config.seed, screen).items():
                metrics[name]["decoding"] = diagnosis
            compared = comparison.compare(ranked, metrics, loaded, dataset, cases, config)
            if config.value_column is not None:
                value_metrics.add(metrics, compared, ranked, dataset, cases, config)
            for name, memory in loaded.memories.items():
                memory.save(folder / memory_file(name))
            results.save(folder, config.run_dir, dataset, ranked, metrics, compared)
            screen.note(results.table_of(folder))
    model_cards.fill_cards(config.run_dir, config.models, results.table_of(stage.folder))
    results.show(stage.folder, screen)


if __name__ == "__main__":
    run_as_command(main)

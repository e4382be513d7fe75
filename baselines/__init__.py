"""The baselines of the table, fitted on the train part only. A further one is one file here and one row below, or, where it is another
SASRec, one row of NEURAL."""

from __future__ import annotations

from sidrec.baselines.baseline import Baseline, DirectBaseline
from sidrec.baselines.item_knn import fit_item_knn, tune_item_knn
from sidrec.baselines.markov import fit_markov, fit_markov_decay, tune_markov_decay
from sidrec.baselines.neural import NEURAL, NeuralBaseline
from sidrec.baselines.popularity import fit_popularity, fit_recent_popularity, tune_recent_popularity
from sidrec.baselines.slit import MATRICES, fit_slit, tune_slit

BASELINES: dict[str, Baseline] = {
    "popularity": DirectBaseline(fit_popularity),
    "recent_popularity": DirectBaseline(fit_recent_popularity, tune_recent_popularity),
    "item_knn": DirectBaseline(fit_item_knn, tune_item_knn, blends=True),
    "markov": DirectBaseline(fit_markov),
    "markov_decay": DirectBaseline(fit_markov_decay, tune_markov_decay),
    "slit": DirectBaseline(fit_slit, tune_slit, blends=True, matrices=MATRICES),
    **{name: NeuralBaseline(name, settings) for name, settings in NEURAL.items()},
}

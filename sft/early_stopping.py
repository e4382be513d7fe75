"""Training ends where valid Recall stops rising; a run that was killed, before or after that, ends in the same place."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, TrainingArguments

from data.stage import InputError


class EarlyStopping(EarlyStoppingCallback):
    """transformers' own, whose count is kept in checkpoints (`restore_callback_states_from_checkpoint`), and which stays stopped.

    Trainer takes one more step when it resumes from a checkpoint at which training had stopped; that step is not measured or saved.
    """

    over = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.over = self.early_stopping_patience_counter >= self.early_stopping_patience
        self._stay_stopped(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stay_stopped(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stay_stopped(control)

    def _stay_stopped(self, control: Any) -> None:
        if self.over:
            control.should_training_stop = True
            control.should_log = control.should_evaluate = control.should_save = False


def early_stopping(patience: int, training: TrainingArguments) -> list[EarlyStopping]:
    """The callback, or none for patience 0. Raises InputError when it could never act."""
    if patience < 0:
        raise InputError(
            f"early_stopping_patience={patience} is negative; give a number of evaluations, or 0 for none."
        )
    if patience == 0:
        return []
    if training.eval_strategy == "no" or not training.load_best_model_at_end:
        raise InputError(
            f"early_stopping_patience={patience} needs evaluations and the best checkpoint; "
            "set eval_strategy to epoch or steps, and load_best_model_at_end to true."
        )
    return [EarlyStopping(early_stopping_patience=patience)]

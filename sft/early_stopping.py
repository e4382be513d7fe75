"""Training ends where valid Recall stops rising; a run that was killed, before or after that, ends in the same place."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback


class StayFinished(TrainerCallback):
    """A run that resumes from its last checkpoint stays finished.

    Trainer takes one more step in that case, where an epoch goes on behind it; the step is not measured or saved.
    """

    over = False

    def is_over(self, state: Any) -> bool:
        return state.global_step >= state.max_steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.over = self.is_over(state)
        self._stay_finished(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stay_finished(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stay_finished(control)

    def _stay_finished(self, control: Any) -> None:
        if self.over:
            control.should_training_stop = True
            control.should_log = control.should_evaluate = control.should_save = False


class EarlyStopping(StayFinished, EarlyStoppingCallback):
    """transformers' own, whose count is kept in checkpoints (`restore_callback_states_from_checkpoint`), and which stays stopped."""

    def is_over(self, state: Any) -> bool:
        return super().is_over(state) or self.early_stopping_patience_counter >= self.early_stopping_patience


def early_stopping(patience: int) -> list[EarlyStopping]:
    """The callback that ends training after `patience` measurements without a better one, or none for 0."""
    return [EarlyStopping(early_stopping_patience=patience)] if patience else []

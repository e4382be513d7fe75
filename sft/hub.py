"""The finished model's folder on the Hugging Face Hub: once, at the end, and private unless asked otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from sidrec.pipeline.errors import InputError
from sidrec.pipeline.screen import Screen
from sidrec.sft.trainer_config import TrainerConfig

CONNECTION_ERROR: type[Exception] = HfHubHTTPError.__bases__[
    0
]  # of whichever HTTP client huggingface_hub uses: no answer, or a bad one
NOT_UPLOADED = ["checkpoints/*", "adapter/*", "log.txt", ".*"]


@dataclass(frozen=True)
class HubRepository:
    """Where the model goes. token: None for the one that is logged in."""

    name: str
    private: bool
    token: str | None = field(repr=False)

    @classmethod
    def asked_for(cls, training: TrainerConfig) -> HubRepository | None:
        """What `push_to_hub` and `hub_model_id` ask for, None without.

        Raises InputError, before any training, when no repository is named, the name is not one, or the token may not write to it.
        """
        if not training.push_to_hub:
            return None
        if not training.hub_model_id:
            raise InputError("push_to_hub is true but hub_model_id is not given; add `--hub_model_id NAME`.")
        private = True if training.hub_private_repo is None else training.hub_private_repo
        repository = cls(training.hub_model_id, private, training.hub_token)
        if PartialState().is_main_process:
            repository.create()
        return repository

    def create(self) -> None:
        """Make the repository where there is none; so it is known that it can be written to."""
        try:
            validate_repo_id(self.name)
            api = HfApi(token=self.token)
            api.whoami()
            api.create_repo(self.name, private=self.private, exist_ok=True)
        except LocalTokenNotFoundError as error:
            raise InputError("push_to_hub needs a token of the hub; run `hf auth login` or set HF_TOKEN.") from error
        except HFValidationError as error:
            raise InputError(f"hub_model_id={self.name!r} is no repository's name; give NAME or OWNER/NAME.") from error
        except (CONNECTION_ERROR, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"hub_model_id={self.name!r} cannot be written to ({reason}); check the token's rights and the connection, "
                "or leave push_to_hub out."
            ) from error

    def upload(self, folder: Path, screen: Screen) -> None:
        """Upload a finished stage's folder as one commit, and say where it is; only the first process of a run does."""
        if not PartialState().is_main_process:
            return
        api = HfApi(token=self.token)
        commit = api.upload_folder(
            repo_id=self.name,
            folder_path=folder,
            ignore_patterns=NOT_UPLOADED,
            commit_message=f"{folder.name} by sidrec",
        )
        screen.say(f"uploaded: {commit.commit_url}")

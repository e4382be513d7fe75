"""Train the codec: encoder, residual quantizer and decoder together. Reads text/, writes codec/.

accelerate launch codec/train_vae.py --config configs/codec/tiny.yaml --run_dir outputs/codec
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sidrec.codec.settings import CodecNetworkSettings, CodecQuantizerSettings, CodecTrainingSettings
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.pipeline.launch import building_together, finished_already, refuse_wrong_number_of_processes
from sidrec.pipeline.ranges import check_least
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage, require_finished


@dataclass
class VaeTrainingSettings(CodecTrainingSettings):
    """The training of the codec (sidrec.codec.training)."""

    frozen_steps: int = field(
        default=0, metadata={"help": "Steps in which the backbones stay as they are, before everything is trained."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, "frozen_steps", 0)


CONFIGS = (CodecNetworkSettings, CodecQuantizerSettings, VaeTrainingSettings)


def main(arguments: list[str] | None = None) -> None:
    network, quantizer, training = parse_configs(CONFIGS, arguments, stage="codec")
    refuse_wrong_number_of_processes()
    import torch  # after --help, which shall be fast

    from sidrec.codec.codec_learner import CodecLearner
    from sidrec.codec.rq_vae import RQVAE
    from sidrec.codec.text_rows import TextRows
    from sidrec.codec.training import CodecTraining, join_processes

    join_processes()
    text_folder = require_finished(training.run_dir, "text", "sidrec codec text")
    text, screen = TextRows.open(training.run_dir), Screen("codec")
    settings = fingerprint(network, quantizer, training, leave_out=("run_dir", "overwrite"))
    stage = Stage(training.run_dir, "codec", settings, inputs=(text_folder,))
    if finished_already(stage, training.overwrite, screen):
        return
    torch.manual_seed(training.seed)
    latents_a_step = training.batch_size * text.row_length // network.compression
    codec = RQVAE(network, quantizer, text.vocabulary_size, latents_a_step, text.pad_id)
    learner = CodecLearner(codec, text.rows["train"], text.rows["valid"][: training.valid_rows])
    learner.size_levels(training.seed)
    with building_together(stage, training.overwrite) as folder, screen.logging_to(folder / "log.txt"):
        loop = CodecTraining(learner, len(text.rows["train"]), training, folder, screen, training.frozen_steps)
        curve = loop.run(lambda: learner.start(training.seed))
        if loop.accelerator.is_main_process:
            codec.save(folder)
            screen.summary("codec", learner.write_report(folder, curve))
            loop.forget()
        loop.accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_as_command(main)

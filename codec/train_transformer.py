"""Train the RQ-Transformer on the codes of a trained codec. Reads text/ and codec/, writes codec_transformer/.

accelerate launch codec/train_transformer.py --config configs/codec_transformer/tiny.yaml --run_dir outputs/codec
"""

from __future__ import annotations

from sidrec.codec.rq_transformer_settings import RQTransformerSettings
from sidrec.codec.settings import CodecTrainingSettings
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_configs
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.fingerprint import fingerprint
from sidrec.pipeline.launch import building_together, finished_already, refuse_wrong_number_of_processes
from sidrec.pipeline.screen import Screen
from sidrec.pipeline.stage import Stage, require_finished

CONFIGS = (RQTransformerSettings, CodecTrainingSettings)
CODES = "checkpoints/{}_codes.npz"


def main(arguments: list[str] | None = None) -> None:
    network, training = parse_configs(CONFIGS, arguments, stage="codec_transformer")
    refuse_wrong_number_of_processes()
    import numpy as np  # after --help, which shall be fast
    import torch
    from accelerate import PartialState

    from sidrec.codec.code_learner import CodedText, CodeLearner
    from sidrec.codec.rq_transformer import RQTransformer
    from sidrec.codec.rq_vae import RQVAE
    from sidrec.codec.text_rows import TextRows
    from sidrec.codec.training import CodecTraining, join_processes

    join_processes()
    inputs = (
        require_finished(training.run_dir, "text", "sidrec codec text"),
        require_finished(training.run_dir, "codec", "accelerate launch codec/train_vae.py"),
    )
    text, codec, screen = TextRows.open(training.run_dir), RQVAE.load(inputs[1]), Screen("codec_transformer")
    if not codec.settings.quantize:
        raise InputError(f"{inputs[1]} was trained with quantize false, so it has no codes; train one that quantizes.")
    settings = fingerprint(network, training, leave_out=("run_dir", "overwrite"))
    stage = Stage(training.run_dir, "codec_transformer", settings, inputs=inputs)
    if finished_already(stage, training.overwrite, screen):
        return
    with building_together(stage, training.overwrite) as folder, screen.logging_to(folder / "log.txt"):
        drawn = np.random.default_rng(training.seed).permutation(len(text.rows["train"]))
        needed = np.sort(drawn[: training.training_steps * training.batch_size])  # no step reads the others
        parts = {"train": needed, "valid": np.arange(min(training.valid_rows, len(text.rows["valid"])))}
        coded = {}
        for name, rows in parts.items():
            path = folder / CODES.format(name)
            with PartialState().main_process_first():  # makes them; the others read them
                if not path.exists():
                    made = CodedText.of(codec, text.rows[name][rows], screen, with_latents=network.code_temperature > 0)
                    made.save(path)
            coded[name] = CodedText.load(path)
        torch.manual_seed(training.seed)
        books = [codec.quantizer.book(level).vectors() for level in range(len(codec.quantizer.sizes))]
        model = RQTransformer(network, books)
        learner = CodeLearner(model, codec.quantizer, coded["train"], coded["valid"])
        loop = CodecTraining(learner, len(needed), training, folder, screen)
        curve = loop.run(lambda: None)
        if loop.accelerator.is_main_process:
            model.save(folder)
            screen.summary("codec_transformer", learner.write_report(folder, curve, codec.compression))
            loop.forget()
        loop.accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_as_command(main)

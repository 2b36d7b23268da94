"""What a process of a training test runs: a tiny network, trained, and what came of it written by rank 0.

python -m tests.train_along FOLDER CHECKPOINT EPOCHS STRATEGY...    prints each step, so that a test can kill it
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from export.backbones import Backbone, Origin, load_backbone
from export.checkpoint import Checkpoint
from export.distributed import ranks
from export.finetune import Aids, Epoch, Frames, Outcome, Rows, Schedule, finetune
from export.recipes import Strategy
from sdk.images import decode
from tests.tiny import picture

SIDE = 48
PER_CLASS = 10
HELD = np.arange(3 * PER_CLASS) % 5 == 0


def pictures() -> tuple[Frames, Rows]:
    """Return thirty pictures of three classes."""
    names = ("good", "pit", "scratch")
    frames = np.stack([decode(picture(name, i)) for name in names for i in range(PER_CLASS)])
    return frames, np.repeat(np.arange(3), PER_CLASS)


def tiny(name: str = "test_resnet", *, pretrained: bool = True) -> Backbone:
    """Return a random backbone that counts as pretrained or not."""
    backbone = load_backbone(name, "none", input_size_px=SIDE)
    origin = Origin("test", None, "mit", pretrained)
    return Backbone(backbone.name, backbone.module, backbone.feature_size, backbone.preprocess, origin)


def trained(strategy: Strategy, epochs: int, aids: Aids) -> tuple[Backbone, Outcome]:
    """Return a tiny backbone, trained."""
    backbone, (frames, labels) = tiny(), pictures()
    return backbone, finetune(backbone, strategy, frames, labels, HELD, Schedule(epochs), aids=aids)


def main() -> None:
    """Train, and write weights and figures."""
    folder, checkpoint, epochs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)

    def on_step(done: int, total: int, _epoch: Epoch | None) -> None:
        print(done, total, flush=True)

    with ranks() as here:
        saved = Checkpoint(Path(checkpoint), every_s=0.0) if checkpoint else None
        for strategy in sys.argv[4:]:
            backbone, outcome = trained(Strategy(strategy), epochs, Aids(here, saved, on_step=on_step))
            if here.writes:
                save_file(backbone.network.state_dict(), folder / f"{strategy}.safetensors")
                losses = [epoch.loss for epoch in outcome.history]
                (folder / f"{strategy}.json").write_text(json.dumps([outcome.resumed_at, losses]))


if __name__ == "__main__":
    main()

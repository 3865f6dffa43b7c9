"""Writes a trained model into one file, with all that predictions need.

    python export.py --checkpoint runs/a --format onnx
    python predict.py --checkpoint runs/a/checkpoints/best.onnx photo.jpg
"""

# ruff: noqa: E402
from engine.errors import begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

import dataset
import options
from engine.inference.export import export
from model import Model


def main() -> int:
    return export(Model, options.make_parser(), dataset.load_eval, dataset.data_dir)


if __name__ == "__main__":
    run_program(main)

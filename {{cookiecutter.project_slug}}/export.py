"""Writes a trained model into one file, with all that predictions need.

    python export.py --checkpoint runs/a --format onnx
    python predict.py --checkpoint runs/a/checkpoints/best.onnx photo.jpg
"""

from engine.errors import run_program  # first: Ctrl-C ends in one line from here on

# isort: split
import dataset
import options
from engine.inference.export import export
from model import Model


def main() -> int:
    return export(Model, options.make_parser(), dataset.load_to_judge, dataset.data_dir)


if __name__ == "__main__":
    run_program(main)

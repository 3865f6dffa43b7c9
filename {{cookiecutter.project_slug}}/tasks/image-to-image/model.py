"""The finished model of this project, under the one name by which all programs get it.

To use another one, write it in a file of its own and import it here as `Model`. Every model has

    Model(opt, info)            info: a dict that the data set provides and checkpoints keep
    info                        that dict
    networks()                  {"net": network, ...}: each is saved, trained if it has parameters
    forward(*batch)             {"net": {loss name: scalar}, ...}: the losses that train each
                                network; no name twice, no graph shared by two networks' losses
    compute_metrics(*batch)     {metric name: sum over the images of the batch}
    monitor                     the metric, higher is better, that decides which checkpoint is best
    image_grid(*batch)          an image of a batch for TensorBoard: uint8 (3, H, W)

A network that keeps other things than weights, as an image pool does, has no parameters and has

    end_step(join)              called after the forward passes of a step; `join` takes a tensor of
                                this process and returns those of all, end to end

and for test.py and predict.py: from_checkpoint(path), translate(inputs).
"""

from translator import Translator as Model

__all__ = ["Model"]

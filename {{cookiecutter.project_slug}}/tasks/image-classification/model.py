"""The model that train.py trains; for another one, name it here."""

from classifier import Classifier as Model

__all__ = ["Model"]

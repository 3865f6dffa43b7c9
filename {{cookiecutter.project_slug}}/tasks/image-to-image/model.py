"""The model that train.py trains; for another one, name it here."""

from translator import Translator as Model

__all__ = ["Model"]

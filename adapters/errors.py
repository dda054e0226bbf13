"""Errors of the adapters room. Codes are stable: docs/reference/errors.md."""


class AdapterError(Exception):
    """A network, its weights or its training is not as it must be; the message says what to do."""

    code = "adapter"


class NetworkMismatch(AdapterError):
    """Encoder, decoder, weights or class list do not belong together."""

    code = "network_mismatch"


class UnsupportedModel(AdapterError):
    """mfmd does not read models or files of this kind; the message lists the kinds that work."""

    code = "unsupported_model"


class ModelFails(AdapterError):
    """A model fails in its first forward pass at the served size, or gives values that are not finite."""

    code = "model_fails"


class ExportRefused(AdapterError):
    """A version cannot be exported there or in that format; the message says what is possible."""

    code = "export_refused"


class TrainingFailed(AdapterError):
    """Training cannot continue, for example because the loss is not finite."""

    code = "training_failed"

"""A logger of another project that keeps nothing on this machine, as MLflow's with a tracking server."""

from lightning.pytorch.loggers import Logger


class ServingLogger(Logger):
    """Keeps what it gets in memory."""

    hyperparameters: dict
    metrics: list

    def __init__(self) -> None:
        super().__init__()
        self.metrics = []

    @property
    def name(self) -> str:
        return "project"

    @property
    def version(self) -> str:
        return "3f2a"

    def log_hyperparams(self, params: dict) -> None:
        type(self).hyperparameters = params

    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        self.metrics.append((step, metrics))

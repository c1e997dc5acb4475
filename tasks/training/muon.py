"""Muon: momentum whose matrices are made orthogonal, with AdamW for everything that is no matrix."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from ai_wam.errors import InvalidValue
from ai_wam.utils.number_checks import check_numbers

_MOMENTUM = 0.95  # that of states from before it was an option, too
_BETAS, _EPS = (0.9, 0.95), 1e-8
# Of the polynomial a x + b x^3 + c x^5 that takes singular values near 1 in five steps; torch.optim.Muon's.
_COEFFICIENTS, _STEPS = (3.4445, -4.7750, 2.0315), 5
_MATCHED = 0.2  # root mean square of an update of AdamW, in learning rates


class Muon(Optimizer):
    """Steps along orthogonal matrices, as large as AdamW's, so that a learning rate means the same as there.

    A weight with two or more dimensions, the first two larger than 1, is a matrix of the first dimension by
    all others; biases, norms and tables are stepped by AdamW. Matrices have one state per weight, AdamW's
    two. `torch.optim.Muon` takes matrices only and computes in bfloat16, which is 20 times as slow as float32
    on processors without instructions for it; here that is done on GPUs only.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025, arXiv 2502.16982 (size of the steps, weight decay).

    Args:
        params: parameters or parameter groups.
        lr: learning rate; its peak, under a schedule.
        weight_decay: on matrices; `parameter_groups` says what has none.
        momentum: of the gradients of matrices. Runs of a thousand steps learn more with 0.9.

    Raises:
        ValueError: a number out of range, or weights that are sharded over processes.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = _MOMENTUM,
    ) -> None:
        check_numbers("Muon", at_least=0, lr=lr, weight_decay=weight_decay)
        check_numbers("Muon", at_least=0, below=1, momentum=momentum)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        if any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            raise InvalidValue(
                "Muon needs whole matrices, and the weights are sharded over processes: choose "
                "tasks.training.optimizer.AdamW, or --trainer.strategy ddp"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a saved state; those from before `momentum` was an option had the default."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("momentum", _MOMENTUM)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            for matrix in filter(is_matrix, given):
                self._step_matrix(matrix, group["lr"], group["weight_decay"], group["momentum"])
            if others := [p for p in given if not is_matrix(p)]:
                self._step_others(others, group["lr"], group["weight_decay"])
        return loss

    def _step_matrix(self, weight: Tensor, lr: float, weight_decay: float, momentum: float) -> None:
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        gradient, mean = weight.grad, state["momentum"]
        mean.lerp_(gradient, 1 - momentum)
        update = orthogonal(gradient.lerp(mean, momentum).flatten(1))  # Nesterov's
        weight.mul_(1 - lr * weight_decay)
        weight.sub_(update.view_as(weight), alpha=lr * _MATCHED * math.sqrt(max(update.shape)))

    def _step_others(self, weights: list[Tensor], lr: float, weight_decay: float) -> None:
        for weight in weights:
            if not (state := self.state[weight]):
                state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        states = [self.state[weight] for weight in weights]
        names = ("mean", "square", "step")
        mean, square, step = ([state[name] for state in states] for name in names)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        adamw(
            weights,
            gradients,
            mean,
            square,
            [],
            step,
            fused=True,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=_EPS,
            maximize=False,
        )


def is_matrix(weight: Tensor) -> bool:
    """Whether Muon steps a weight as a matrix."""
    return weight.ndim >= 2 and min(weight.shape[:2]) > 1


def orthogonal(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """A matrix with the singular vectors of another, and singular values near 1; those near 0 stay small."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide.bfloat16() if matrix.is_cuda else wide.float()
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide is matrix else x.T).to(matrix.dtype)

"""AdamW as a map of its state, and that map's adjoint, elementwise on flat vectors.

PyTorch's AdamW (Loshchilov and Hutter 2019, algorithm 2), with decoupled decay, epsilon outside the root and correction
of bias, behind clipping by the global norm (Pascanu et al. 2013). With g the gradient of step t, n its norm and
b_i = 1 - beta_i ** t:

    c = min(1, max_norm / (n + 1e-6)),  h = c g
    m = beta1 m + (1 - beta1) h,        v = beta2 v + (1 - beta2) h ** 2
    theta = (1 - lr decay) theta - lr (m / b1) / (sqrt(v / b2) + eps)

The adjoint takes the derivative of some later quantity by the state after the step to that by the state before it and
by g. Where v is 0 (the first step of LoRA's A, whose B is 0) theta is no differentiable function of v, and what is
multiplied by the derivative is 0: it is set to 0 there.

Shapes: P trainable parameters as one vector; Q quantities at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_CLIP_EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True, slots=True)
class AdamWStep:
    """What one optimizer step was told.

    Attributes:
        number: t, counted from 1.
        lr: Learning rate of this step.
        beta1: Of the first moment.
        beta2: Of the second moment.
        eps: Added to the root of the second moment.
        max_norm: Gradients are clipped to this norm; None for no clipping.
        norm: n, the gradient's norm before clipping.
    """

    number: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    max_norm: float | None
    norm: float

    @property
    def clip_factor(self) -> float:
        """c, in (0, 1]."""
        return clip_factor(self.norm, self.max_norm)

    @property
    def corrections(self) -> tuple[float, float]:
        """(b1, b2)."""
        return 1 - self.beta1**self.number, 1 - self.beta2**self.number


def clip_factor(norm: float, max_norm: float | None) -> float:
    """Return what a gradient of some norm is multiplied by."""
    return 1.0 if max_norm is None else min(1.0, max_norm / (norm + _CLIP_EPSILON))


@dataclass(frozen=True, slots=True)
class AdamWState:
    """What the optimizer has between steps.

    Attributes:
        parameters: (P,) theta.
        first: (P,) m.
        second: (P,) v.
    """

    parameters: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor

    @classmethod
    def fresh(cls, parameters: torch.Tensor) -> AdamWState:
        """Return the state before the first step."""
        return cls(parameters, torch.zeros_like(parameters), torch.zeros_like(parameters))


@dataclass(frozen=True, slots=True)
class Adjoint:
    """Derivatives of Q quantities by a state.

    Attributes:
        parameters: (Q, P) by theta.
        first: (Q, P) by m.
        second: (Q, P) by v.
    """

    parameters: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor

    @classmethod
    def of(cls, gradients: torch.Tensor) -> Adjoint:
        """Return the derivatives of quantities that depend on theta alone; gradients are (Q, P)."""
        return cls(gradients, torch.zeros_like(gradients), torch.zeros_like(gradients))


def advance(state: AdamWState, clipped: torch.Tensor, decay: torch.Tensor, step: AdamWStep) -> AdamWState:
    """Return the state after a step, in the order of operations of torch.optim.AdamW, to its bits on a CPU.

    Args:
        state: Before it; of shape (P,), or any shape that ends so.
        clipped: h, of the same shape.
        decay: () or (P,) weight decay of each parameter.
        step: What it is told.
    """
    b1, b2 = step.corrections
    parameters = state.parameters * (1 - step.lr * decay)
    first = state.first.lerp(clipped, 1 - step.beta1)
    second = (state.second * step.beta2).addcmul(clipped, clipped, value=1 - step.beta2)
    spread = (second.sqrt() / b2**0.5).add(step.eps)
    return AdamWState(parameters.addcdiv(first, spread, value=-step.lr / b1), first, second)


def pull_back(
    adjoint: Adjoint, after: AdamWState, clipped: torch.Tensor, decay: torch.Tensor, step: AdamWStep
) -> tuple[Adjoint, torch.Tensor]:
    """Return the adjoint before a step without what goes through the gradient, and the derivatives by the gradient.

    The adjoint before the step lacks H p, the share that theta has in it through g: that takes the model.

    Args:
        adjoint: By the state after the step.
        after: That state.
        clipped: (P,) h.
        decay: () or (P,).
        step: What it was told.

    Returns:
        The adjoint, and p: (Q, P) derivatives by g, before clipping.
    """
    b1, b2 = step.corrections
    root = (after.second / b2).sqrt()
    scale = 1 / (root + step.eps)
    slope = (after.first / b1) * scale * scale / (2 * root)
    dead = root == 0
    scale, slope = scale.masked_fill(dead, 0), slope.masked_fill(dead, 0)
    first = adjoint.first - (step.lr / b1) * scale * adjoint.parameters
    second = adjoint.second + (step.lr / b2) * slope * adjoint.parameters
    pushed = (1 - step.beta1) * first + 2 * (1 - step.beta2) * clipped * second
    before = Adjoint((1 - step.lr * decay) * adjoint.parameters, step.beta1 * first, step.beta2 * second)
    return before, through_clipping(pushed, clipped, step)


def through_clipping(pushed: torch.Tensor, clipped: torch.Tensor, step: AdamWStep) -> torch.Tensor:
    """Return (Q, P) the transposed derivative of clipping times vectors: c [I - n / (n + 1e-6) u uᵀ], u = g / n."""
    factor = step.clip_factor
    if factor == 1:
        return pushed
    unit = clipped / clipped.norm()
    share = step.norm / (step.norm + _CLIP_EPSILON)
    found: torch.Tensor = factor * (pushed - share * (pushed @ unit)[:, None] * unit)
    return found


def removal_effects(
    adjoint: Adjoint,
    before: AdamWState,
    after: AdamWState,
    gradients: torch.Tensor,
    decay: torch.Tensor,
    step: AdamWStep,
) -> torch.Tensor:
    """Return (Q, rows) what the quantities change by if a step's gradient is another: the step itself exactly.

    Only what comes after the step is linear, in theta, m and sqrt(v): later steps divide by the root, which is nearly
    linear in the gradients, as v is not where a single example makes up much of it. It repairs the first steps, where
    the update is little else than the gradient's sign.

    Args:
        adjoint: By the state after the step.
        before: The state before it.
        after: The state after it.
        gradients: (rows, P) other gradients, before clipping.
        decay: () or (P,).
        step: What it was told.
    """
    factors = torch.ones_like(gradients[:, :1])
    if step.max_norm is not None:
        factors = (step.max_norm / (gradients.norm(dim=1, keepdim=True) + _CLIP_EPSILON)).clamp(max=1)
    other = advance(before, factors * gradients, decay, step)
    root = after.second.sqrt()
    return (
        adjoint.parameters @ (other.parameters - after.parameters).T
        + adjoint.first @ (other.first - after.first).T
        + adjoint.second @ (2 * root * (other.second.sqrt() - root)).T
    )

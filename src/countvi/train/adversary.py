"""The classifier of batches that is trained against a model's latent space."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from countvi import seeding
from countvi.batch import Batch, Design, Factor
from countvi.models.objective import Elbo
from countvi.nn.mlp import Mlp, MlpConfig
from countvi.train.checkpoint import load_optimizer, optimizer_tensors, under

_HIDDEN, _LAYERS, _DROPOUT = 32, 2, 0.1
_LR, _EPS, _WEIGHT_DECAY = 1e-3, 0.01, 1e-6


class _Classifier(nn.Module):
    def __init__(self, n_latent: int, n_levels: int) -> None:
        super().__init__()
        self.mlp = Mlp(n_latent, MlpConfig(_HIDDEN, _LAYERS, _DROPOUT))
        self.logits = nn.Linear(_HIDDEN, n_levels)

    def forward(self, z: Tensor, design: Design) -> Tensor:
        return self.logits(self.mlp(z, None, design))


class BatchAdversary:
    r"""Tells the batch of a cell from its z, while the model learns z that does not tell it.

    The model's loss gets :math:`\kappa` times the cross-entropy between what is told and the uniform distribution over
    the *other* batches; the classifier descends :math:`\kappa` times the cross-entropy with the batch, after each step
    of the model. The number of steps, and so the KL warm-up, is that of the model alone. The classifier is forgotten
    with the run, and with several processes each has its own.

    Parameters
    ----------
    n_latent
        Dimensions of z.
    batch
        The covariate; of two levels at least.
    scale
        :math:`\kappa`; ``None`` for one minus the KL weight, so that it fades with the warm-up.
    seed
        Of the classifier's weights.
    """

    def __init__(self, n_latent: int, batch: Factor, scale: float | None = None, seed: int = 0) -> None:
        assert batch.n_levels > 1, "there is nothing to tell about a single batch"
        self.batch = batch
        self.scale = scale
        with seeding.forked(seed):
            self.classifier = _Classifier(n_latent, batch.n_levels)
        self._seen: tuple[Tensor, Design, float] | None = None

    def begin(self, device: torch.device, dtype: torch.dtype) -> None:
        """Get ready for a run."""
        # Sent to several processes, its weights lie in memory that all of them share; each steps on its own.
        self.classifier = copy.deepcopy(self.classifier).to(device=device, dtype=dtype).train()
        parameters = self.classifier.parameters()
        self._optimizer = torch.optim.Adam(parameters, lr=_LR, eps=_EPS, weight_decay=_WEIGHT_DECAY)

    def penalty(self, elbo: Elbo, batch: Batch, kl_weight: float) -> Tensor:
        """What is added to the loss of a minibatch, a scalar."""
        weight = 1.0 - kl_weight if self.scale is None else self.scale
        z, level = elbo.latents.z, batch.design.levels(self.batch)
        self._seen = (z.detach(), batch.design, weight) if weight > 0 and len(z) > 1 else None
        if self._seen is None:
            return z.new_zeros(())
        log_prob = self.classifier(z, batch.design).log_softmax(-1)
        own = log_prob.gather(1, level.unsqueeze(1)).squeeze(1)
        fooled = (log_prob.sum(-1) - own) / (self.batch.n_levels - 1)
        return -weight * fooled.mean()

    def learn(self) -> None:
        """Take a step on the minibatch that :meth:`penalty` saw last."""
        if self._seen is None:
            return
        z, design, weight = self._seen
        loss = weight * functional.cross_entropy(self.classifier(z, design), design.levels(self.batch))
        self._optimizer.zero_grad()
        if bool(torch.isfinite(loss.detach())):
            loss.backward()
            self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """All that a run needs to be continued."""
        weights = {f"weights/{name}": tensor for name, tensor in self.classifier.state_dict().items()}
        return weights | {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(self._optimizer).items()}

    def resume(self, state: dict[str, Tensor]) -> None:
        """Go back to a :meth:`state`."""
        self.classifier.load_state_dict(under(state, "weights/"))
        load_optimizer(self._optimizer, under(state, "optimizer/"))

"""Affine autoregressive transforms."""

import torch
from pyro.distributions import transforms
from pyro.nn import AutoRegressiveNN
from torch import Tensor


class AffineAutoregressive(transforms.AffineAutoregressive):
    r"""Pyro's :math:`y_j = s_j(x_{<j}) x_j + m_j(x_{<j})`, with an inverse in the dtype of y, in the order of the entries.

    Args:
        size: number of entries.
        hidden_dims: widths of the hidden layers of the network that computes s and m.
    """

    def __init__(self, size: int, hidden_dims: list[int]):
        super().__init__(AutoRegressiveNN(size, hidden_dims, permutation=torch.arange(size)))

    def _inverse(self, y: Tensor) -> Tensor:
        columns = [torch.zeros_like(y[..., 0])] * y.shape[-1]
        for j in range(y.shape[-1]):
            mean, log_scale = self.arn(torch.stack(columns, -1))
            log_scale = log_scale.clamp(self.log_scale_min_clip, self.log_scale_max_clip)
            columns[j] = (y[..., j] - mean[..., j]) * (-log_scale[..., j]).exp()
        self._cached_log_scale = log_scale
        return torch.stack(columns, -1)

"""RAdam (arXiv 1908.03265) in a few operations for all tensors, behind a gate on the device.

PyTorch's has a counter for every tensor and, on a GPU, works out the rectification for each of them by operations of
its own: about a thousand launches a step. Here tensors that were always trained together share one counter.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class FusedRAdam(torch.optim.Optimizer):
    """The arithmetic and the state of torch.optim.RAdam without weight decay, with the gate of its fused optimisers.

    Where `found_inf`, a float () on the device, is 1, a step leaves weights and state as they are, to the bit.

    Args:
        parameters: float32, on one device.
        lr: learning rate.
        betas: decays of the two moments.
        eps: added to the root of the second moment.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "fused": True})
        self.found_inf: Tensor | None = None

    def load_state_dict(self, state_dict: Any) -> None:
        """Counters of the same value become one."""
        super().load_state_dict(state_dict)
        counters: dict[float, Tensor] = {}
        for state in self.state.values():
            state["step"] = counters.setdefault(float(state["step"]), state["step"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of the parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for together in self._by_counter([one for one in group["params"] if one.grad is not None]):
                self._step(together, group)

    def _by_counter(self, trained: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        """The parameters, grouped by counter. Those that have a gradient part from those that have none."""
        fresh = [parameter for parameter in trained if parameter not in self.state]
        if fresh:
            counter = torch.zeros((), device=fresh[0].device)
            for parameter in fresh:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": counter, **moments}
        owners: dict[int, int] = {}
        for state in self.state.values():
            owners[id(state["step"])] = owners.get(id(state["step"]), 0) + 1
        groups: dict[int, list[nn.Parameter]] = {}
        for parameter in trained:
            groups.setdefault(id(self.state[parameter]["step"]), []).append(parameter)
        for counter, members in groups.items():
            if len(members) < owners[counter]:
                own = self.state[members[0]]["step"].clone()
                for parameter in members:
                    self.state[parameter]["step"] = own
        return list(groups.values())

    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        (beta1, beta2), states = group["betas"], [self.state[parameter] for parameter in parameters]
        m, v = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        step, gradients = states[0]["step"], [parameter.grad for parameter in parameters if parameter.grad is not None]
        go = torch.ones_like(step) if self.found_inf is None else 1 - self.found_inf
        if self.found_inf is not None:  # nan times 0 is nan, but its bits times 0 are those of 0
            bits = torch._foreach_mul([gradient.view(torch.int32) for gradient in gradients], go.int())
            gradients = [tensor.view(torch.float32) for tensor in bits]
        step += go
        torch._foreach_mul_(m, torch.where(go > 0, beta1, 1.0))
        torch._foreach_add_(m, gradients, alpha=1 - beta1)
        torch._foreach_mul_(v, torch.where(go > 0, beta2, 1.0))
        torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)
        # Algorithm 2 of the paper: rho_t, the length of the average, and the rectification r_t where that is above 5.
        t = step.double().clamp(min=1)
        bias1, bias2, longest = 1 - beta1**t, 1 - beta2**t, 2 / (1 - beta2) - 1
        rho = longest - 2 * t * beta2**t / bias2
        r = ((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)).clamp(min=0).sqrt()
        rectified = rho > 5
        scale = -group["lr"] * go / bias1
        # m r_t sqrt(bias2) / (sqrt(v) + eps), or m: the factor of one of both is 0.
        change = torch._foreach_sqrt(v)
        torch._foreach_add_(change, group["eps"])
        torch._foreach_reciprocal_(change)
        torch._foreach_mul_(change, m)
        torch._foreach_mul_(change, torch.where(rectified, scale * r * bias2.sqrt(), 0.0).float())
        torch._foreach_add_(change, torch._foreach_mul(m, torch.where(rectified, 0.0, scale).float()))
        torch._foreach_add_([parameter.detach() for parameter in parameters], change)

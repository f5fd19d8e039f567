"""The Wasserstein distance, by exact plans."""

from torch import Tensor

from exactot import solve_sample
from generative.objectives.plan import FollowPlan


class IpotExact(FollowPlan):
    """Destinations by the exact plan; on the line it is found by sorting."""

    def plan(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        transport = solve_sample(x, y)
        return transport.plan, transport.value

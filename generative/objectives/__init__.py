"""Training objectives by name. A new one is a class in a file beside these and a line here."""

from generative.objectives.adversarial import Wgan, WganGp
from generative.objectives.assignment import Assignment, AssignmentFast
from generative.objectives.objective import Objective
from generative.objectives.transport import Ipot, IpotExact, Sinkhorn
from generative.objectives.unbalanced import Uotm

OBJECTIVES: dict[str, type[Objective]] = {
    "ipot": Ipot,
    "ipot-exact": IpotExact,
    "sinkhorn": Sinkhorn,
    "wgan": Wgan,
    "wgan-gp": WganGp,
    "assignment": Assignment,
    "assignment-fast": AssignmentFast,
    "uotm": Uotm,
}

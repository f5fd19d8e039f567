"""Training objectives by name. A new one is a class in a file beside these and a line here."""

from generative.objectives.assignment import Assignment, AssignmentFast
from generative.objectives.ipot import Ipot
from generative.objectives.ipot_exact import IpotExact
from generative.objectives.objective import Objective
from generative.objectives.ot_cfm import OtCfm
from generative.objectives.sinkhorn import Sinkhorn
from generative.objectives.uotm import Uotm
from generative.objectives.wgan import Wgan
from generative.objectives.wgan_gp import WganGp

OBJECTIVES: dict[str, type[Objective]] = {
    "ipot": Ipot,
    "ipot-exact": IpotExact,
    "sinkhorn": Sinkhorn,
    "wgan": Wgan,
    "wgan-gp": WganGp,
    "assignment": Assignment,
    "assignment-fast": AssignmentFast,
    "uotm": Uotm,
    "ot-cfm": OtCfm,
}

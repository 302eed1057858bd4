"""How many nodes a number of cameras needs: measured costs (`costs`), what follows from them (`sizing`), and
a simulation that checks it (`simulate`).

    roadmask bench CLIP --sweep stages --sweep streams > costs.txt      # on a machine of the kind planned for
    roadmask plan --streams 1000 --fps 30 --size 1280x720 --costs costs.txt --node cores=16,gpus=1
"""

from __future__ import annotations

from pipeline.plan import report
from pipeline.plan.costs import Costs, load_costs
from pipeline.plan.simulate import Check, check
from pipeline.plan.sizing import Ask, Node, Plan, make_plan, parse_node

__all__ = [
    "Ask", "Check", "Costs", "Node", "Plan", "check", "load_costs", "make_plan", "parse_node", "report",
]  # fmt: skip

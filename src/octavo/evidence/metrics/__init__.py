"""What a claim can be held against: the metrics, by the name that a claim file gives; one file for each family."""

from octavo.evidence.metrics import accumulation, arithmetic, costs, experts, leverage, pairs, specialisation
from octavo.evidence.metrics.base import Metric, NoParameters

METRICS = {
    "loss_difference": Metric(pairs.Pairs, "%", pairs.loss_difference),
    "resource_ratio": Metric(pairs.Pairs, "ratio", pairs.resource_ratio),
    "leverage": Metric(leverage.OnAxis, "ratio", leverage.leverage),
    "time_per_token": Metric(pairs.Pairs, "ratio", pairs.time_per_token, timed=True),
    "accumulation": Metric(NoParameters, "%", accumulation.accumulation),
    "expert_count": Metric(experts.ExpertCount, "% per doubling", experts.expert_count),
    "all_in_cost": Metric(NoParameters, "ratio", costs.all_in_cost),
    "traffic": Metric(arithmetic.Layouts, "ratio", arithmetic.traffic_between_devices),
    "published_figures": Metric(arithmetic.Figures, "", arithmetic.published_figures),
    "own_or_rent": Metric(arithmetic.Chip, "ratio", arithmetic.own_or_rent),
    "specialisation": Metric(NoParameters, "% of the domain", specialisation.specialisation),
}

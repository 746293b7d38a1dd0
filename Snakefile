# Octavo: does a mixture-of-experts model trained in FP8 reach the same loss for a fraction of the money?
#
# The path of what you want is the command; results/<experiment>/... is made from configs/experiments/<experiment>.yaml:
#
#   results/<experiment>/plan.pdf                      the forecast, before anything is spent
#   results/<experiment>/report.pdf, report.html       what the runs say
#   results/<experiment>/ablations/<name>/report.pdf   one ablation against its baseline
#   results/<experiment>/verification.json             are the results reproducible?


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evidence.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/verify.smk"


# On a cluster: small, or in need of the network, so not worth a place in the queue. Training is the rest.
localrules:
    all,
    image,
    data,
    plan,
    look,
    aggregate,
    claims,
    figures,
    report,


rule all:
    default_target: True
    input:
        "results/laptop/report.pdf",

# Octavo: does a mixture-of-experts model trained in FP8 reach the same loss for a fraction of the money?
#
# The path of what you want is the command; results/<experiment>/... is made from configs/experiments/<experiment>.yaml:
#
#   results/<experiment>/plan.pdf                      the forecast, before anything is spent
#   results/<experiment>/report.pdf, report.html       what the runs say
#   results/<experiment>/ablations/<name>/report.pdf   one ablation against its baseline
#   results/<experiment>/verification.json             are the results reproducible?
#   results/index.html                                 all experiments side by side


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evidence.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/verify.smk"


# Images and tokens are made where snakemake was started, or as jobs of a partition for such work.
if "cpu_partition" not in config:

    localrules:
        image,
        squashfs,
        data,


# On a cluster: small, so not worth a place in the queue. Training is the rest.
localrules:
    all,
    plan,
    probe,
    look,
    predict,
    aggregate,
    ladder,
    claims,
    figures,
    first_report,
    report,
    index,


rule all:
    default_target: True
    input:
        "results/laptop/report.pdf",

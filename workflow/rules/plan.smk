# The forecast, and the gate: no run starts before the plan is made, and none if it exceeds the experiment's budget.


rule plan:
    input:
        "configs/experiments/{experiment}.yaml",
    output:
        "results/{experiment}/plan.csv",
        "results/{experiment}/plan.pdf",
    log:
        "results/{experiment}/logs/plan.log",
    shell:
        "octavo plan results/{wildcards.experiment} > {log} 2>&1"

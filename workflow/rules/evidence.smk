# Runs -> tables -> verdicts, of an experiment or of one ablation.


# where seeds are added until decided: which cells are to have one more than so many
checkpoint look:
    input:
        octavo.asked_results(lambda: checkpoints.look),
    output:
        "results/{scope}/looks/{after}.json",
    log:
        "results/{scope}/logs/look-{after}.log",
    params:
        arguments=octavo.scope_arguments,
        fingerprint=octavo.scope_fingerprint,
        digest=octavo.claims_digest,
    shell:
        "octavo look {params.arguments} --after {wildcards.after} > {log} 2>&1"


rule aggregate:
    input:
        octavo.asked_results(lambda: checkpoints.look),
    output:
        "results/{scope}/runs.parquet",
        "results/{scope}/steps.parquet",
        "results/{scope}/attempts.parquet",
    log:
        "results/{scope}/logs/aggregate.log",
    params:
        arguments=octavo.scope_arguments,
        fingerprint=octavo.scope_fingerprint,
        digest=octavo.tables_digest,
        provisional=octavo.ledger_provisional,
    shell:
        "octavo aggregate {params.arguments} > {log} 2>&1"


# of a ladder: every planned end, the fit of losses over compute, and the leverage
rule ladder:
    input:
        "results/{experiment}/runs.parquet",
        "results/{experiment}/steps.parquet",
    output:
        "results/{experiment}/ladder.csv",
        "results/{experiment}/leverage.json",
    log:
        "results/{experiment}/logs/ladder.log",
    params:
        digest=octavo.ladder_digest,
    shell:
        "octavo ladder results/{wildcards.experiment} > {log} 2>&1"


rule claims:
    input:
        rules.aggregate.output,
        octavo.scope_leverage,
    output:
        "results/{scope}/claims.json",
        "results/{scope}/comparisons.json",
    log:
        "results/{scope}/logs/claims.log",
    params:
        arguments=octavo.scope_arguments,
        digest=octavo.claims_digest,
    shell:
        "octavo claims {params.arguments} > {log} 2>&1"

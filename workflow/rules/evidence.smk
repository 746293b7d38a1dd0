# Runs -> tables -> verdicts, of an experiment or of one ablation.


rule aggregate:
    input:
        scope_results,
    output:
        "results/{scope}/runs.parquet",
        "results/{scope}/steps.parquet",
        "results/{scope}/attempts.parquet",
    log:
        "results/{scope}/logs/aggregate.log",
    params:
        arguments=scope_arguments,
        fingerprints=scope_fingerprints,
        # a ledger that was left provisional is made again: Slurm's accounting may answer now
        times_provisional=lambda wildcards: times_provisional(ExperimentFolder(Path("results") / wildcards.scope)),
    shell:
        "octavo aggregate {params.arguments} > {log} 2>&1"


rule claims:
    input:
        rules.aggregate.output,
    output:
        "results/{scope}/claims.json",
        "results/{scope}/comparisons.json",
    log:
        "results/{scope}/logs/claims.log",
    params:
        arguments=scope_arguments,
    shell:
        "octavo claims {params.arguments} > {log} 2>&1"

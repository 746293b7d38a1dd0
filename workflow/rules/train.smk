# One job per run. Checkpoints are no output: Snakemake deletes the outputs of failed jobs, and a run goes on from them.

submits = bool(workflow.resource_settings.nodes)
if workflow.is_main_process:
    octavo.enter(submits)

for name, cap in octavo.device_caps().items():
    workflow.register_resource(name, cap)


rule train:
    input:
        octavo.train_inputs,
    output:
        "results/{experiment}/runs/{cell}/seed-{seed}/result.json",
    log:
        "results/{experiment}/logs/{cell}-seed-{seed}.log",
    benchmark:
        "results/{experiment}/benchmarks/{cell}-seed-{seed}.tsv"
    priority: octavo.train_priority
    # not by the Snakemake inside a job
    retries: octavo.retries(workflow.is_main_process and submits)
    threads: octavo.train_threads
    resources:
        **octavo.train_resources(submits or not workflow.is_main_process),
        attempt=lambda wildcards, attempt: attempt,
    params:
        fingerprint=octavo.fingerprint_of_run,
    shell:
        "OCTAVO_TRY={resources.attempt} octavo train"
        " results/{wildcards.experiment}/runs/{wildcards.cell}/seed-{wildcards.seed} >> {log} 2>&1"


# of a ladder: what the largest rung will show, sealed when all others are trained and before it begins
rule predict:
    input:
        octavo.prediction_inputs,
    output:
        "results/{experiment}/prediction.json",
    log:
        "results/{experiment}/logs/predict.log",
    params:
        fingerprint=octavo.prediction_fingerprint,
    shell:
        "octavo predict results/{wildcards.experiment} > {log} 2>&1"

# One job per run. Checkpoints are no output: Snakemake deletes the outputs of failed jobs, and a run goes on from them.

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
    retries: octavo.retries(workflow.is_main_process and bool(workflow.resource_settings.nodes))
    threads: octavo.train_threads
    resources:
        **octavo.train_resources(),
        attempt=lambda wildcards, attempt: attempt,
    params:
        fingerprint=octavo.fingerprint_of_run,
    shell:
        "OCTAVO_TRY={resources.attempt} octavo train"
        " results/{wildcards.experiment}/runs/{wildcards.cell}/seed-{wildcards.seed} >> {log} 2>&1"
